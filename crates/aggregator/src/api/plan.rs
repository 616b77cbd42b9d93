//! `/api/v1/plan`: the blocks, the notices, the held Apps and the disputes, each with its reason.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use procscan_core::names::{App, Key, NodeName};
use procscan_core::plan::{Dispute, HeldApp};
use procscan_core::snapshot::Coverage;
use serde::{Deserialize, Serialize};

use super::Api;
use super::page::{Page, Paging, SMALL_PAGE_ENTRIES};
use super::problem::Problem;
use super::query::Parameters;
use super::types::Mode;
use crate::decided::Decided;

/// How many disputes are listed: a hostile agent may cause any number.
const MAX_DISPUTES: usize = 1000;

/// The place of an entry: the lists follow one another in this order, and each is ordered by these values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    Block(App),
    Notice(App),
    /// The App, and whether its release is held.
    Held(App, bool),
    Dispute(Key, NodeName),
}

pub(super) async fn plan(State(api): State<Api>, Parameters(query): Parameters) -> Result<Response, Problem> {
    let paging = Paging::of(query)?;
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
        None => api.make_small(page(&decided, coverage, &paging)),
        Some(turn) => api.make(turn, move || page(&decided, coverage, &paging)).await,
    })
}

fn page(decided: &Arc<Decided>, coverage: Coverage, paging: &Paging<Place>) -> serde_json::Result<Vec<u8>> {
    let plan = &decided.plan;
    let is_new = |place: Place| paging.after.as_ref().is_none_or(|last| place > *last);
    let held_place = |held: &HeldApp| Place::Held(held.app.clone(), held.release);
    let dispute_place = |dispute: &Dispute| Place::Dispute(dispute.key.clone(), dispute.node.clone());
    let mut held: Vec<&HeldApp> = decided.held.iter().collect();
    held.sort_by(|a, b| (&a.app, a.release).cmp(&(&b.app, b.release)));

    let mut page = Page::new(paging.limit());
    page.member("mode", &Mode::from(plan.mode))?;
    let blocks = plan.blocks.iter().filter(|block| is_new(Place::Block(block.app.clone())));
    page.list("blocks", blocks, |block| Place::Block(block.app.clone()))?;
    let notices = plan.notices.iter().filter(|notice| is_new(Place::Notice(notice.app.clone())));
    page.list("notices", notices, |notice| Place::Notice(notice.app.clone()))?;
    page.list("held", held.into_iter().filter(|held| is_new(held_place(held))), |held| held_place(held))?;
    page.member("summary", &plan.summary)?;
    // The number of all disputes, and the first of them.
    page.member("disputed", &decided.disputes.len())?;
    let disputes = decided.disputes.iter().take(MAX_DISPUTES);
    page.list("disputes", disputes.filter(|it| is_new(dispute_place(it))), |it| dispute_place(it))?;
    page.member("unverified", &decided.unverified)?;
    page.member("coverage", &coverage)?;
    page.end()
}
