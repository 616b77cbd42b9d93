//! A kind with an object for each App, as files: nothing but its own file and the list of kinds says how it is handled.

use super::*;
use crate::output::app_policies::{
    IN_ONE_NAMESPACE, IN_TENANTS_NAMESPACES, KINDS, KINDS_IN_TENANTS, NAMESPACE, place,
};
use crate::output::difference::Action;

/// The settings, and the file of an App's policy, for each home of the kind.
fn homes() -> [(Settings, impl Fn(&str) -> String); 2] {
    let one = (KINDS, IN_ONE_NAMESPACE, Some(NAMESPACE));
    let tenants = (KINDS_IN_TENANTS, IN_TENANTS_NAMESPACES, None);
    [one, tenants].map(|(kinds, kind, home)| {
        let file = move |name: &str| {
            let (namespace, name) = place(&App::new("ns-a", "app", name), home);
            kind.file_name(&namespace, &name)
        };
        (Settings { kinds, ..settings() }, file)
    })
}

fn pass(directory: &Directory, plan: &Plan, settings: &Settings) -> Written {
    directory.refresh().unwrap();
    let existing = directory.existing(settings).unwrap();
    directory.apply(resources::drafts(plan, settings, existing)).unwrap()
}

fn without_summary(path: &std::path::Path) -> Vec<String> {
    listing(path).into_iter().filter(|name| !name.starts_with("notification_")).collect()
}

#[tokio::test]
async fn a_file_of_each_app_is_created_repaired_inherited_and_removed_when_the_app_is_released() {
    for (settings, file) in homes() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        pass(&directory, &plan(&["web", "blog"]), &settings);
        assert_eq!(without_summary(temp.path()), [file("blog"), file("web"), PLUGIN.to_owned()]);
        let text = fs::read_to_string(temp.path().join(file("web"))).unwrap();
        assert!(text.contains("\nkind: ConfigMap\n") && text.contains("\ndata:\n"), "{text}");

        fs::write(temp.path().join(file("web")), text.replace("closed", "open")).unwrap();
        assert_eq!(pass(&directory, &plan(&["web", "blog"]), &settings).written, 1);
        assert_eq!(fs::read_to_string(temp.path().join(file("web"))).unwrap(), text);

        // The gateway's file is lost: the policies say what is blocked.
        fs::remove_file(temp.path().join(PLUGIN)).unwrap();
        let permit = WritePermit::of_term(1, "a");
        let mut output = Output::Directory(Directory::open(temp.path()).unwrap());
        let Ok(inherited) = output.take_over(&settings, &permit, true, None).await else { panic!("unknown") };
        let names: Vec<&str> = inherited.iter().map(|it| &*it.app.name).collect();
        assert_eq!(names, ["blog", "web"]);
        assert_eq!(inherited[1].services, ["web.ns-a.svc".into()]);

        pass(&directory, &plan(&["web", "blog"]), &settings);
        let preview = directory.preview(&plan(&["web"]), &settings).unwrap();
        let removed: Vec<_> = preview.iter().filter(|it| it.action == Action::Remove).collect();
        assert_eq!((removed.len(), &removed[0].object), (1, &file("blog")));
        assert_eq!(pass(&directory, &plan(&["web"]), &settings), Written { written: 1, removed: 1 });
        assert_eq!(without_summary(temp.path()), [file("web"), PLUGIN.to_owned()]);
    }
}

#[test]
fn a_damaged_file_of_any_kind_that_blocks_is_not_taken_for_nothing_blocked() {
    for (settings, file) in homes() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        pass(&directory, &plan(&["web"]), &settings);
        let path = temp.path().join(file("web"));
        let whole = fs::read_to_string(&path).unwrap();
        let cut = &whole[..whole.find("  state").unwrap()];
        for damaged in [cut, &whole[..20], ""] {
            fs::write(&path, damaged).unwrap();
            let new = Directory::open(temp.path()).unwrap();
            let error = new.blocked(&settings, None).unwrap_err().to_string();
            assert!(
                error.contains(&file("web")) && error.contains("what is blocked is not known"),
                "{error}"
            );
            let persisted = damaged::persisted(&["web"]);
            let left = new.blocked(&settings, persisted.as_ref()).unwrap();
            assert_eq!(left.len(), 1, "what the gateway's file says");
            assert_eq!(pass(&new, &plan(&["web"]), &settings).written, 1);
            assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        }
    }
}

#[test]
fn clearing_a_directory_removes_the_files_of_every_kind_and_no_others() {
    for (settings, file) in homes() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        pass(&directory, &plan(&["web", "blog"]), &settings);
        // Cut short, of another program, and unfinished.
        fs::write(temp.path().join(file("blog")), "").unwrap();
        fs::write(temp.path().join("configmap_mine.yaml"), "").unwrap();
        fs::write(temp.path().join("mine.yaml"), "kind: ConfigMap\n").unwrap();
        fs::write(temp.path().join(format!(".procscan-{}-0123456789abcdef", file("web"))), "half").unwrap();
        directory.lock(None).unwrap();
        directory.tidy(settings.kinds).unwrap();
        directory.clear(&settings).unwrap();
        assert_eq!(listing(temp.path()), [LOCK, "configmap_mine.yaml", "mine.yaml"]);
    }
}

/// An object that could not be written may have to close what another file closes.
#[test]
fn while_a_file_of_a_kind_that_blocks_can_not_be_written_none_of_that_kind_is_removed() {
    for (settings, file) in homes() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        pass(&directory, &plan(&["web", "blog"]), &settings);
        let message = temp.path().join("notification_ns-a_procscan-x.yaml");
        fs::copy(temp.path().join(PLUGIN), &message).unwrap();
        fs::write(temp.path().join(file("shop")), "kind: Mine\n").unwrap();
        let released = plan(&["web", "shop"]);
        directory.refresh().unwrap();
        let existing = directory.existing(&settings).unwrap();
        directory.apply(resources::drafts(&released, &settings, existing)).unwrap_err();
        assert!(temp.path().join(file("blog")).exists() && !message.exists());
        fs::remove_file(temp.path().join(file("shop"))).unwrap();
        assert_eq!(pass(&directory, &released, &settings), Written { written: 1, removed: 1 });
        assert!(!temp.path().join(file("blog")).exists());
    }
}

#[tokio::test]
async fn a_file_that_was_cut_short_is_removed_when_its_app_is_released() {
    for (settings, file) in homes() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        let settings = Arc::new(settings);
        let write = async |names: &[&str]| {
            let decided = Arc::new(Decided { rounds: 1, ..Decided::nothing(plan(names)) });
            let (_decide, decisions) = watch::channel(decided.clone());
            let mut output = Output::Directory(directory.clone());
            output.write(&decided, false, false, &settings, &WritePermit::always(), &decisions).await
        };
        assert_eq!(write(&["web", "blog"]).await.problems, Vec::<String>::new());
        let whole = fs::read_to_string(temp.path().join(file("blog"))).unwrap();
        for left in ["", &whole[..20]] {
            write(&["web", "blog"]).await;
            fs::write(temp.path().join(file("blog")), left).unwrap();
            // Of another program.
            fs::write(temp.path().join("configmap_mine.yaml"), left).unwrap();
            let preview = directory.preview(&plan(&["web"]), &settings).unwrap();
            let removed = preview.iter().filter(|it| it.action == Action::Remove);
            assert_eq!(removed.map(|it| &it.object).collect::<Vec<_>>(), [&file("blog")]);
            // While the plan has it, it is written anew.
            assert_eq!(write(&["web", "blog"]).await.written, 1);
            fs::write(temp.path().join(file("blog")), left).unwrap();
            assert_eq!(write(&["web"]).await.removed, 1);
            assert!(!temp.path().join(file("blog")).exists());
            assert!(temp.path().join("configmap_mine.yaml").exists());
        }
    }
}
