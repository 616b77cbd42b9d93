//! Which Services are listed plainly, and which blocks go into one object.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;

use super::{Gateway, Shards};
use crate::hash::stable_hash;
use crate::names::{App, AppParts, Text};
use crate::plan::{Block, Exposure, Plan};

/// Two quotes and a comma.
const SEPARATORS: usize = 3;
/// How much larger the parts of an App with very many Ingresses are than those of other Apps: each part of its Services
/// is listed with each part of its Ingresses.
const LARGE_PARTS: usize = 4;

/// Services of one App that have no room in the plain list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surplus<'a> {
    /// The App that they expose.
    pub(crate) app: &'a App,
    /// The Services, as `service.namespace.svc`: closed only on the Ingresses that lead to them.
    pub services: Vec<&'a Text>,
}

/// The Services for which the plain list has no room, although they are reached in ways that no Ingress names: they
/// stay open in these ways.
pub fn surplus<'a>(plan: &'a Plan, gateway: &Gateway, existing: Shards) -> Vec<Surplus<'a>> {
    let Some(listed) = Form::of(plan, gateway, existing).plain(plan, gateway) else { return Vec::new() };
    let surplus = plan.blocks.iter().map(|block| Surplus {
        app: &block.app,
        services: block.exposure.otherwise.iter().filter(|service| !listed.contains(service)).collect(),
    });
    surplus.filter(|surplus| !surplus.services.is_empty()).collect()
}

/// What goes into one shard as a whole: an App, or a part of one that is too large.
pub(super) struct Part {
    pub(super) hash: u64,
    pub(super) block: Arc<Block>,
}

impl Part {
    /// An App that takes up to `share` bytes is one part. A larger one is split by its Services, because its tenant
    /// makes it as large as it likes and must not force a shard upon other Apps. It is not known which Ingress leads to
    /// which Service, so each is listed with all of the App's Ingresses.
    pub(super) fn of(block: &Arc<Block>, form: Form, gateway: &Gateway, share: usize) -> Vec<Self> {
        let AppParts { namespace, kind, name } = &*block.app;
        if form.bytes(block, gateway) <= share {
            let hash = stable_hash(&[namespace, kind, name]);
            return vec![Self { hash, block: block.clone() }];
        }
        let Exposure { services, ingresses, otherwise, .. } = &*block.exposure;
        let ingresses: &[Text] = if form == Form::Services { &[] } else { ingresses };
        let plain: BTreeSet<&Text> = otherwise.iter().collect();
        let is_plain = |service: &Text| plain.contains(service);
        let need_of_ingresses: usize = ingresses.iter().map(Form::bytes_of_ingress).sum();
        let (room_for_services, room_for_ingresses) = if need_of_ingresses <= share / 2 {
            (share - need_of_ingresses, share)
        } else {
            (share * LARGE_PARTS / 2, share * LARGE_PARTS / 2)
        };
        let need = |service: &Text| {
            let lists = if form == Form::Services || !is_plain(service) { 1 } else { 2 };
            Form::bytes_of(service, gateway) * lists
        };
        let services = chunks(services, room_for_services, need);
        let ingresses = chunks(ingresses, room_for_ingresses, Form::bytes_of_ingress);
        let mut parts: Vec<Self> = Vec::new();
        for services in &services {
            for (turn, ingresses) in ingresses.iter().enumerate() {
                // Each Service is listed plainly once.
                let otherwise = services.iter().filter(|service| turn == 0 && is_plain(service));
                let exposure = Arc::new(Exposure {
                    services: services.clone(),
                    ingresses: ingresses.clone(),
                    otherwise: otherwise.cloned().collect(),
                    ..Exposure::default()
                });
                let index = parts.len();
                // The accusations are listed for people once.
                let (grounds, left) =
                    if index == 0 { (block.grounds.clone(), block.left.clone()) } else { Default::default() };
                let hash = match index {
                    0 => stable_hash(&[namespace, kind, name]),
                    _ => stable_hash(&[namespace, kind, name, &index.to_string()]),
                };
                let part = Block { grounds, left, exposure, ..Block::clone(block) };
                parts.push(Self { hash, block: Arc::new(part) });
            }
        }
        parts
    }
}

/// Splits `all` into parts of up to `room` bytes each; at least one part.
fn chunks(all: &[Text], room: usize, need: impl Fn(&Text) -> usize) -> Vec<Vec<Text>> {
    let (mut chunks, mut left): (Vec<Vec<Text>>, usize) = (vec![Vec::new()], room);
    for name in all {
        let need = need(name);
        if need > left && chunks.last().is_some_and(|chunk| !chunk.is_empty()) {
            chunks.push(Vec::new());
            left = room;
        }
        left = left.saturating_sub(need);
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(name.clone());
        }
    }
    chunks
}

/// How the Services are listed.
///
/// The gateway compares every request, also those to innocent Apps, with every entry of a plain `service` list. A long
/// list therefore names the Ingresses as well, which the gateway finds by hash first; only Services that are reached in
/// other ways stay in the plain list, as far as there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Services,
    IngressesAndServices,
}

impl Form {
    pub(super) fn of(plan: &Plan, gateway: &Gateway, existing: Shards) -> Self {
        let services = || plan.blocks.iter().map(|block| &block.exposure.services);
        let mut entries: usize = services().map(Vec::len).sum();
        if entries > gateway.max_service_entries / 5 * 4 {
            // Several Apps may have the same Service.
            entries = services().flatten().collect::<HashSet<_>>().len();
        }
        let limit = gateway.max_service_entries;
        // The limit for the way back is lower, so that one App more or less does not rewrite everything each time.
        let is_long = entries > limit || existing.has_long_list && entries > limit / 5 * 4;
        if is_long { Self::IngressesAndServices } else { Self::Services }
    }

    /// The most bytes of JSON that a block takes.
    pub(super) fn bytes(self, block: &Block, gateway: &Gateway) -> usize {
        let hosts = |hosts: &[Text]| hosts.iter().map(|host| Self::bytes_of(host, gateway)).sum::<usize>();
        let Exposure { services, ingresses, otherwise, .. } = &*block.exposure;
        match self {
            Self::Services => hosts(services),
            Self::IngressesAndServices => {
                let ingresses: usize = ingresses.iter().map(Self::bytes_of_ingress).sum();
                hosts(services) + hosts(otherwise) + ingresses
            }
        }
    }

    /// The Services that are listed plainly of those that are reached in other ways than by Ingresses; `None` if all
    /// are.
    ///
    /// A tenant makes as many Apps and Services as it likes, so tenants share the room equally, and a tenant's Apps
    /// share its part; what one does not need goes to the others. If there is not one place for each, the Apps that
    /// were blocked first get them.
    fn plain<'a>(self, plan: &'a Plan, gateway: &Gateway) -> Option<HashSet<&'a Text>> {
        let room = gateway.max_service_entries;
        let needs = plan.blocks.iter().map(|block| block.exposure.otherwise.len()).sum::<usize>();
        if self == Self::Services || needs <= room {
            return None;
        }
        let mut tenants: BTreeMap<&Text, (Timestamp, Vec<&Block>)> = BTreeMap::new();
        for block in &plan.blocks {
            let (since, blocks) = tenants.entry(&block.app.namespace).or_insert((block.since, Vec::new()));
            *since = block.since.min(*since);
            blocks.push(block);
        }
        let mut tenants: Vec<(Timestamp, Vec<&Block>)> = tenants.into_values().collect();
        tenants.sort_by_key(|(since, _)| *since);
        // Several Apps may have the same Service.
        let distinct = |(_, blocks): &(Timestamp, Vec<&Block>)| {
            blocks.iter().flat_map(|block| &block.exposure.otherwise).collect::<HashSet<_>>().len()
        };
        let needs: Vec<usize> = tenants.iter().map(distinct).collect();
        let mut listed = HashSet::new();
        for ((_, mut blocks), room) in tenants.into_iter().zip(shares(&needs, room)) {
            blocks.sort_by_key(|block| block.since);
            let mut turns: VecDeque<_> = blocks.iter().map(|block| block.exposure.otherwise.iter()).collect();
            let mut left = room;
            while left > 0
                && let Some(mut services) = turns.pop_front()
            {
                // A Service that is listed for another App already takes no room.
                if services.by_ref().any(|service| listed.insert(service)) {
                    left -= 1;
                    turns.push_back(services);
                }
            }
        }
        Some(listed)
    }

    /// The blocks of the plan, each with the Services that are listed plainly.
    pub(super) fn blocks(self, plan: &Plan, gateway: &Gateway) -> Vec<Arc<Block>> {
        let Some(listed) = self.plain(plan, gateway) else { return plan.blocks.clone() };
        let with_listed = |block: &Arc<Block>| {
            if block.exposure.otherwise.iter().all(|service| listed.contains(service)) {
                return block.clone();
            }
            let mut exposure = Exposure::clone(&block.exposure);
            exposure.otherwise.retain(|service| listed.contains(service));
            Arc::new(Block { exposure: Arc::new(exposure), ..Block::clone(block) })
        };
        plan.blocks.iter().map(with_listed).collect()
    }

    fn bytes_of_ingress(name: &Text) -> usize {
        name.len() + SEPARATORS
    }

    /// The bytes of JSON that the host name of a Service takes.
    fn bytes_of(host: &Text, gateway: &Gateway) -> usize {
        host.len() + 1 + gateway.cluster_domain.len() + SEPARATORS
    }
}

/// Shares `room` by `needs`: none gets more than it needs, nor more than another one that needs as much. The first ones
/// get what can't be shared equally.
fn shares(needs: &[usize], room: usize) -> Vec<usize> {
    let used = |level: usize| needs.iter().map(|need| (*need).min(level)).sum::<usize>();
    // The highest level that fits for all is at least `level` and below `high`.
    let (mut level, mut high) = (0, room.saturating_add(1));
    while high - level > 1 {
        let middle = level + (high - level) / 2;
        if used(middle) <= room { level = middle } else { high = middle }
    }
    let mut left = room - used(level).min(room);
    let share = |need: &usize| {
        let more = usize::from(left > 0 && *need > level);
        left -= more;
        (*need).min(level) + more
    };
    needs.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn room_is_shared_equally_as_far_as_it_goes(
            needs in prop::collection::vec(0..50_usize, 0..40), room in 0..300_usize
        ) {
            let shares = shares(&needs, room);
            prop_assert_eq!(shares.len(), needs.len());
            let (used, needed) = (shares.iter().sum::<usize>(), needs.iter().sum::<usize>());
            prop_assert_eq!(used, needed.min(room), "no more than there is, and nothing is left while one needs it");
            let most = shares.iter().max().copied().unwrap_or_default();
            for (index, (share, need)) in shares.iter().zip(&needs).enumerate() {
                prop_assert!(share <= need);
                // One that gets less than it needs gets as much as any other, or one less if it comes later.
                prop_assert!(share == need || share + 1 >= most);
                let is_after_one_with_less = shares[..index].iter().zip(&needs).any(|(before, need)| before < need && before < share);
                prop_assert!(!is_after_one_with_less);
            }
        }
    }
}
