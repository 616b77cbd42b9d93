//! Laws of control groups.

use super::cgroup::Home;

const OTHER_UID: &str = "deadbeef-0000-4000-8000-00000000beef";

/// Laws of the file `/proc/PID/cgroup`.
///
/// # Panics
/// Panics if a law is broken.
pub fn cgroup(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    named(&text, &Home::of(&text));
    for line in text.lines() {
        let home = Home::of(line);
        named(line, &home);
        below(line, &home);
        within_a_namespace(line, &home);
    }
}

/// Each name in the result is a part of the text.
fn named(text: &str, home: &Home) {
    let is_uid = |uid: &str| {
        assert!(
            matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
            "{uid}"
        );
        assert!(text.replace('_', "-").contains(uid), "{uid} in {text}");
    };
    match home {
        Home::Outside => {
            let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
            assert!(!paths.any(|path| path.contains("kubepods")), "{text}");
        }
        Home::Pod(uid) if uid.is_empty() => assert!(text.contains("kubepods"), "{text}"),
        Home::Pod(uid) => is_uid(uid),
        Home::Container { id, inside, .. } => {
            assert!(id.len() == 64 && text.contains(id.as_str()), "{id} in {text}");
            if let Some(uid) = inside {
                is_uid(uid);
            }
        }
    }
}

/// Control groups that a tenant makes below its own do not change the owner of a process.
fn below(line: &str, home: &Home) {
    let other_id = "0".repeat(64);
    for nested in [
        format!("kubepods/pod{OTHER_UID}/{other_id}"),
        format!("kubepods-pod{}.slice:cri-containerd:{other_id}", OTHER_UID.replace('-', "_")),
        format!("cri-containerd-{other_id}.scope"),
    ] {
        let deeper = Home::of(&format!("{line}/{nested}"));
        match home {
            // The outermost name is the new one.
            Home::Outside => {}
            Home::Pod(uid) if uid.is_empty() => {}
            Home::Container { id, is_of_kubernetes: false, .. } => {
                assert!(
                    matches!(&deeper, Home::Container { id: same, .. } if same == id),
                    "{line}: {deeper:?}"
                );
            }
            home => assert_eq!(deeper, *home, "{line}"),
        }
    }
}

/// An agent in a control-group namespace gets the same result.
fn within_a_namespace(line: &str, home: &Home) {
    let mut parts = line.splitn(3, ':');
    if let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        && path.starts_with('/')
        // With a line feed behind it, the carriage return would belong to the line end.
        && !path.ends_with('\r')
    {
        assert_eq!(Home::of(&format!("{id}:{controllers}:/../..{path}")), *home, "{line}");
        assert_eq!(Home::of(&format!("7:unused:/\n{line}\n0::/\n")), *home, "{line}");
    }
}
