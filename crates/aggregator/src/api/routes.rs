//! The routes of the API.

use super::reader::Reading::{Get, List};
use super::route::{Access, Route};
use super::types::{
    AppPage, ApproveRequest, CommandResult, DecisionPage, EnforceRequest, Enforcement, EnforcementChange,
    ExemptRequest, Exemption, ExemptionPage, Incident, IncidentPage, NewExemption, NodePage, Pending,
    PlanPage, ReleaseRequest, Status, ViolationList, ViolationPage,
};
use super::{
    compat, decisions, exemptions, filter, health, incidents, metrics, nodes, operator_commands, plan,
    stream, violations,
};

/// The probes, which are answered even if all places for connections are taken.
pub(super) fn probes() -> Vec<Route> {
    vec![
        Route::get("/health", "health", compat::health)
            .summary("Whether the process serves.")
            .answers::<Status>(200, "It does."),
        Route::get("/livez", "livez", health::livez)
            .summary("Whether the ledger makes progress.")
            .answers::<Status>(200, "It does.")
            .refusals(&[503]),
    ]
}

/// Every route but that of the `OpenAPI` document.
pub(super) fn all() -> Vec<Route> {
    let mut all = probes();
    all.push(
        Route::get("/readyz", "readyz", health::readyz)
            .summary("Whether the first round is done; and, for a caller that may read violations in all namespaces, how each part of the service is.")
            .answers::<health::Readiness>(200, "The first round is done.")
            .refusals(&[503]),
    );
    all.push(
        Route::get(metrics::PATH, "metrics", metrics::metrics)
            .summary("The metrics in the text format of Prometheus, or as OpenMetrics for a client that accepts it.")
            .access(Access::Path)
            .answers_text("text/plain", 200, "The metrics."),
    );
    all.extend(lists());
    all.push(stream_of_changes());
    all.extend(commands());
    all
}

fn lists() -> Vec<Route> {
    let page = "A page of the list.";
    vec![
        Route::get("/api/violations", "listActiveViolations", compat::violations)
            .summary("The active and unconfirmed violations as the agents gave them, with command lines.")
            .access(Access::Read(List))
            .parameters(compat::PARAMETERS)
            .answers::<ViolationList>(200, "The whole list.")
            .answers_nothing(304, "The caller has the list already.")
            .refusals(&[406]),
        Route::get("/api/v1/violations", "listViolations", violations::violations)
            .summary("Every violation, cleared ones included, with the evidence of each node.")
            .access(Access::Read(List))
            .parameters(filter::PARAMETERS)
            .answers::<ViolationPage<'_>>(200, page),
        Route::get("/api/v1/apps", "listApps", incidents::apps)
            .summary("Every App with an incident, in the state of its last one.")
            .access(Access::Read(List))
            .parameters(incidents::APP_PARAMETERS)
            .answers::<AppPage>(200, page),
        Route::get("/api/v1/nodes", "listNodes", nodes::nodes)
            .summary("Every target, how fresh it is, and its last failure.")
            .access(Access::Read(List))
            .parameters(nodes::PARAMETERS)
            .answers::<NodePage>(200, page),
        Route::get("/api/v1/plan", "getPlan", plan::plan)
            .summary("The desired blocks and notices, the held Apps, and the disputes.")
            .access(Access::Read(List))
            .parameters(plan::PARAMETERS)
            .answers::<PlanPage>(200, page),
        Route::get("/api/v1/decisions", "listDecisions", decisions::decisions)
            .summary("The log of decisions.")
            .access(Access::Read(List))
            .parameters(decisions::PARAMETERS)
            .answers::<DecisionPage>(200, page),
        Route::get("/api/v1/incidents", "listIncidents", incidents::incidents)
            .summary("What is persisted of each App.")
            .access(Access::Read(List))
            .parameters(incidents::PARAMETERS)
            .answers::<IncidentPage>(200, page),
        Route::get("/api/v1/incidents/{name}", "getIncident", incidents::incident)
            .summary("One incident.")
            .access(Access::Read(Get))
            .parameters(incidents::ONE)
            .answers::<Incident>(200, "The incident.")
            .refusals(&[404]),
        Route::get("/api/v1/exemptions", "listExemptions", exemptions::exemptions)
            .summary("The exemptions that operators have declared, and those that need a confirmation.")
            .access(Access::Read(List))
            .parameters(exemptions::PARAMETERS)
            .answers::<ExemptionPage>(200, page),
        Route::get("/api/v1/exemptions/{name}", "getExemption", exemptions::exemption)
            .summary("One exemption.")
            .access(Access::Read(Get))
            .parameters(exemptions::ONE)
            .answers::<Exemption>(200, "The exemption.")
            .refusals(&[404]),
        Route::get("/api/v1/enforcement", "getEnforcement", exemptions::enforcement)
            .summary("The mode of enforcement.")
            .access(Access::Read(Get))
            .answers::<Enforcement>(200, "The mode."),
    ]
}

fn stream_of_changes() -> Route {
    Route::get("/api/v1/stream", "streamChanges", stream::stream)
        .summary("Changes of violations, Apps, nodes, decisions and coverage as Server-Sent Events.")
        .access(Access::Read(List))
        .parameters(stream::PARAMETERS)
        .answers_text(
            "text/event-stream",
            200,
            "Events without end. With `Last-Event-ID` they begin after that one.",
        )
}

fn commands() -> Vec<Route> {
    let pending = "The command is persisted, and not carried out yet.";
    let bodies = &[404, 408, 409, 413, 415];
    vec![
        Route::post("/api/v1/incidents/{name}/approve", "approve", operator_commands::approve)
            .summary("Approves the block or the release that a brake holds.")
            .access(Access::Operate("patch", "incidents"))
            .takes::<ApproveRequest>()
            .answers::<CommandResult>(200, "The command is carried out.")
            .answers::<Pending>(202, pending)
            .refusals(bodies),
        Route::post("/api/v1/incidents/{name}/release", "release", operator_commands::release)
            .summary("Releases an App, and keeps it open until a date.")
            .access(Access::Operate("patch", "incidents"))
            .takes::<ReleaseRequest>()
            .answers::<CommandResult>(200, "The command is carried out.")
            .answers::<Pending>(202, pending)
            .refusals(bodies),
        Route::post("/api/v1/exemptions", "exempt", operator_commands::exempt)
            .summary("Makes an exemption.")
            .access(Access::Operate("create", "exemptions"))
            .takes::<ExemptRequest>()
            .answers::<NewExemption>(201, "The exemption is made.")
            .refusals(bodies),
        Route::delete("/api/v1/exemptions/{name}", "removeExemption", operator_commands::remove_exemption)
            .summary("Removes an exemption.")
            .access(Access::Operate("delete", "exemptions"))
            .answers_nothing(204, "The exemption is removed.")
            .refusals(&[404, 409]),
        Route::put("/api/v1/enforcement", "enforce", operator_commands::enforce)
            .summary("Sets the mode of enforcement.")
            .access(Access::Operate("patch", "enforcements"))
            .takes::<EnforceRequest>()
            .answers::<EnforcementChange>(200, "The mode is set.")
            .refusals(&[408, 409, 413, 415]),
    ]
}
