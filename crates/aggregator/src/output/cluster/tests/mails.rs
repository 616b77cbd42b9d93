//! A second kind of message, which exists only in tests. It has the content of Notifications.

use procscan_core::resources::{
    Draft, Drafts, ExistingObject, FoundObject, Home, Kind, MessageKind, ResourceKind, Role, Rule,
};

use super::kinds::notice;
use super::world::{ApiServer, MAILS, MESSAGES};
use super::*;

/// The kinds of the product, and the second kind of message behind them.
pub(super) const KINDS: &[Kind] = &[wasm_plugin::KIND, notification::KIND, MAIL];

const MAIL: Kind = Kind::of(&Mail);

#[derive(Debug)]
struct Mail;

fn like() -> &'static dyn MessageKind {
    notification::KIND.message().unwrap()
}

impl ResourceKind for Mail {
    fn name(&self) -> &'static str {
        "Mail"
    }

    fn api_version(&self) -> &'static str {
        "test.procscan.io/v1"
    }

    fn plural(&self) -> &'static str {
        "mails"
    }

    fn home<'a>(&'a self, settings: &'a Settings) -> Home<'a> {
        like().home(settings)
    }

    fn is_our_name(&self, namespace: &str, name: &str, settings: &Settings) -> bool {
        like().is_our_name(namespace, name, settings)
    }

    fn is_ours(&self, object: &FoundObject<'_>) -> bool {
        like().is_ours(object)
    }

    fn drafts<'a>(
        &'static self,
        plan: &'a Plan,
        settings: &'a Settings,
        existing: &[ExistingObject],
    ) -> Drafts<'a> {
        let drafts = notification::KIND.drafts(plan, settings, existing);
        Box::new(drafts.map(|draft| Draft::from(Object { kind: MAIL, ..draft.object() })))
    }

    fn role(&self) -> Role<'_> {
        Role::Notifies(self)
    }

    fn rules(&self, settings: &Settings) -> Vec<Rule> {
        like().rules(settings)
    }
}

impl MessageKind for Mail {
    fn message_name(&self, app: &App) -> String {
        like().message_name(app)
    }

    fn change_annotation(&self) -> &'static str {
        like().change_annotation()
    }

    fn read_label(&self) -> &'static str {
        like().read_label()
    }

    fn has_same_text(&self, a: &Value, b: &Value) -> bool {
        like().has_same_text(a, b)
    }

    fn stays(&self, name: &str) -> bool {
        like().stays(name)
    }
}

/// The API server serves one of the two kinds.
#[tokio::test]
async fn a_kind_of_message_that_is_not_served_stops_no_other_kind() {
    for (missing, other) in [(MESSAGES, MAILS), (MAILS, MESSAGES)] {
        let server = ApiServer::default();
        server.world().unserved.insert(missing.to_owned());
        let settings = Settings { kinds: KINDS, ..Config::default().settings() };
        let with_notice = Plan { notices: vec![notice()], ..plan(1) };
        let mut output = server.output();
        let outcome = output.write(&with_notice, &settings, &WritePermit::always(), || true).await;
        assert_eq!(outcome.problems.len(), 1, "{:?}", outcome.problems);
        assert!(outcome.problems[0].contains(missing), "{:?}", outcome.problems);
        let of_other = server.world().objects.keys().filter(|(plural, ..)| plural == other).count();
        assert_eq!(of_other, 1, "{other}");
        assert!(output.has_sent(&with_notice.notices[0], &settings));
    }
}
