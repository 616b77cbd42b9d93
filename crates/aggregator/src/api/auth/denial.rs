//! The problems of callers without a right: what is missing, in the terms of the authority.

use axum::http::StatusCode;
use serde_json::json;

use super::super::problem::Problem;
use super::{Caller, GROUP, Right};

/// No rule of the cluster gives the right.
pub(super) fn by_rules(caller: &Caller, right: &Right) -> Problem {
    let user = &caller.name;
    let (verb, resource, namespace, name) = match right {
        Right::Object { verb, resource, namespace, name } => (verb, resource, namespace, name),
        Right::Path(path) => {
            let rule = json!({"nonResourceURLs": [path], "verbs": ["get"]});
            let detail = format!("{user} may not get {path}: no RBAC rule allows it");
            return Problem::new(StatusCode::FORBIDDEN, detail).with(&json!({"user": user, "rule": rule}));
        }
    };
    let which = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let place = place(namespace.as_deref());
    let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let of = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
    let mut rule = json!({"apiGroups": [GROUP], "resources": [resource], "verbs": [verb]});
    if let (Some(name), Some(rule)) = (name, rule.as_object_mut()) {
        rule.insert("resourceNames".to_owned(), json!([name]));
    }
    let detail = format!(
        "{user} may not {verb} {plural}.{GROUP}{of}{which} {place}: no RBAC rule allows it{}",
        advice(right)
    );
    Problem::new(StatusCode::FORBIDDEN, detail)
        .with(&json!({"user": user, "namespace": namespace, "rule": rule}))
}

/// No scope in the token file gives the right.
pub(super) fn by_scopes(caller: &Caller, right: &Right) -> Problem {
    let Caller { name, scopes, .. } = caller;
    let what = match right {
        Right::Object { verb, resource, namespace, .. } => {
            format!("{verb} {resource} {}", place(namespace.as_deref()))
        }
        Right::Path(path) => format!("get {path}"),
    };
    let detail = format!(
        "{name} may not {what}: the scopes of this token in `api.token_file` are `{scopes}`{}",
        advice(right)
    );
    Problem::new(StatusCode::FORBIDDEN, detail).with(&json!({"user": name}))
}

/// There is no authority.
pub(super) fn without_authority() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "no request may change anything while `api.auth` is `none`: set it to `kubernetes`, or to `tokens` with an \
         `api.token_file`",
    )
}

fn place(namespace: Option<&str>) -> String {
    namespace.map_or_else(|| "in all namespaces".to_owned(), |namespace| format!("in namespace {namespace}"))
}

/// An account with a right in one namespace has to say so in the request.
fn advice(right: &Right) -> &'static str {
    match right {
        Right::Object { namespace: None, .. } if right.is_to_read() => {
            "; with a right in one namespace, ask for that one: `namespace=NAME`"
        }
        _ => "",
    }
}
