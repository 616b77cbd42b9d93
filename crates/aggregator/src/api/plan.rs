//! `/api/v1/plan`: the blocks, the notices, the held Apps and the disputes, each with its reason.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use procscan_core::names::App;
use procscan_core::plan::{Dispute, HeldApp};
use procscan_core::snapshot::Coverage;
use serde::Serialize;

use super::Api;
use super::page::{Page, SMALL_PAGE_ENTRIES};
use super::parameters::{CURSOR, Given, LIMIT, NAMESPACE, Order, Pairs, Parameter, name, sort, text};
use super::problem::Problem;
use super::reader::Reading;
use super::sort::{Paging, Place, SortValue};
use super::types::Mode;
use crate::decided::Decided;

/// How many disputes are listed: a hostile agent may cause any number.
const MAX_DISPUTES: usize = 1000;
/// The lists, in their order on a page.
const LISTS: [&str; 4] = ["blocks", "notices", "held", "disputes"];

/// The parameters of the plan.
pub(super) const PARAMETERS: &[Parameter] = &[
    NAMESPACE,
    text("name", "Only entries of Apps with this name. A dispute belongs to no App."),
    name("list", &LISTS, "Only this list."),
    sort(&["app"]),
    LIMIT,
    CURSOR,
];

/// The filters of a query. All that are given must hold.
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    list: Option<&'static str>,
    paging: Paging,
}

impl Filter {
    fn of(given: &Given) -> Result<Self, Problem> {
        let paging = Paging::of(given, Order::of("app", false))?;
        Ok(Self {
            namespace: given.text("namespace"),
            name: given.text("name"),
            list: given.name("list"),
            paging,
        })
    }

    fn is_of(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }

    fn wants(&self, app: &App) -> bool {
        self.is_of(&app.namespace) && self.name.as_ref().is_none_or(|wanted| **wanted == *app.name)
    }
}

pub(super) async fn plan(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (_, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let filter = Filter::of(&given)?;
    api.find_room()?;
    let is_small = {
        let decided = api.views.decided.borrow();
        let plan = &decided.plan;
        plan.blocks.len() + plan.notices.len() + decided.held.len() + decided.disputes.len()
            <= SMALL_PAGE_ENTRIES
    };
    let turn = if is_small { None } else { Some(api.turn().await?) };
    let coverage = api.snapshot().await.coverage;
    let decided = api.views.decided.borrow().clone();
    Ok(match turn {
        None => api.make_small(page(&decided, coverage, &filter)),
        Some(turn) => api.make(turn, move || page(&decided, coverage, &filter)).await,
    })
}

/// The place of an entry: the lists follow one another, and each is ordered by these values. In the reverse order the last
/// list comes first.
fn place(list: usize, values: impl IntoIterator<Item = SortValue>) -> Place {
    Place([SortValue::from(list)].into_iter().chain(values).collect())
}

fn of_app(app: &App) -> impl Iterator<Item = SortValue> + use<> {
    [&app.namespace, &app.kind, &app.name].map(SortValue::from).into_iter()
}

fn of_dispute(Dispute { key, node, .. }: &Dispute) -> impl Iterator<Item = SortValue> + use<> {
    [&key.namespace, &key.pod, &key.process, &node.0].map(SortValue::from).into_iter()
}

fn page(decided: &Arc<Decided>, coverage: Coverage, filter: &Filter) -> serde_json::Result<Vec<u8>> {
    let plan = &decided.plan;
    let blocks = || plan.blocks.iter().map(|it| (place(0, of_app(&it.app)), &it.app, &**it));
    let notices = || plan.notices.iter().map(|it| (place(1, of_app(&it.app)), &it.app, &**it));
    let held = || {
        let place = |held: &HeldApp| {
            let is_release = SortValue::from(usize::from(held.release));
            self::place(2, of_app(&held.app).chain([is_release]))
        };
        decided.held.iter().map(move |it| (place(it), &it.app, it))
    };
    let is_shown = |dispute: &&Dispute| filter.is_of(&dispute.key.namespace) && filter.name.is_none();
    let disputes = || decided.disputes.iter().filter(is_shown);

    let mut page = Page::new(filter.paging.limit);
    page.member("mode", &Mode::from(plan.mode))?;
    let mut lists: Vec<usize> = (0..LISTS.len()).collect();
    if filter.paging.order.is_descending {
        lists.reverse();
    }
    for list in lists {
        match list {
            0 => of_apps(&mut page, filter, LISTS[0], blocks())?,
            1 => of_apps(&mut page, filter, LISTS[1], notices())?,
            2 => of_apps(&mut page, filter, LISTS[2], held())?,
            _ => {
                let first = disputes().take(MAX_DISPUTES);
                listed(&mut page, filter, LISTS[3], first.map(|it| (place(3, of_dispute(it)), it)))?;
            }
        }
    }
    // The number of all disputes, and the first of them.
    page.member("disputed", &disputes().count())?;
    if filter.namespace.is_none() {
        // These count the Apps of all tenants.
        page.member("summary", &plan.summary)?;
        page.member("unverified", &decided.unverified)?;
    }
    page.member("coverage", &coverage)?;
    page.end()
}

fn of_apps<'a, T: Serialize>(
    page: &mut Page,
    filter: &Filter,
    list: &'static str,
    entries: impl Iterator<Item = (Place, &'a App, T)>,
) -> serde_json::Result<()> {
    let wanted = entries.filter(|(_, app, _)| filter.wants(app));
    listed(page, filter, list, wanted.map(|(place, _, entry)| (place, entry)))
}

fn listed<T: Serialize>(
    page: &mut Page,
    filter: &Filter,
    list: &'static str,
    entries: impl Iterator<Item = (Place, T)>,
) -> serde_json::Result<()> {
    let is_wanted = filter.list.is_none_or(|wanted| wanted == list);
    let entries = entries.filter(|(place, _)| is_wanted && filter.paging.is_new(place));
    let mut entries: Vec<(Place, T)> = entries.collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    if filter.paging.order.is_descending {
        entries.reverse();
    }
    page.placed(list, &filter.paging, entries).map(drop)
}
