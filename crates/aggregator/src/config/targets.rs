//! Lists of targets that operators write: in the configuration or in a file.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use procscan_core::names::NodeName;
use procscan_core::report::Target;

/// The problem of a file that lists no target.
pub(crate) const EMPTY: &str = "it names no target";

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {number}: invalid value {entry:?}: expected {expected}")]
pub struct TargetError {
    number: usize,
    entry: String,
    expected: String,
}

/// Reads entries of the form `host`, `host:port` or `host:port node=NAME`; blank ones are skipped, and what
/// follows a `#`.
///
/// Without `node=` the address names the node. An address listed twice is one target.
pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>, port: u16) -> Result<Vec<Target>, TargetError> {
    let mut targets: BTreeMap<_, Target> = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let refuse = |expected: &str| TargetError {
            number: index + 1,
            entry: entry.chars().take(120).collect(),
            expected: expected.to_owned(),
        };
        // A comment begins with # at the beginning of a word: no address and no name has one.
        let mut words = entry.split_whitespace().take_while(|word| !word.starts_with('#'));
        let Some(first) = words.next() else { continue };
        let address = address(first, port)
            .ok_or_else(|| refuse("host, host:port or [IPv6]:port, with a port from 1 to 65535"))?;
        let node = match (words.next(), words.next()) {
            (None, _) => address.clone(),
            (Some(word), None) => match word.strip_prefix("node=") {
                Some(name) if is_node_name(name) => name.to_owned(),
                _ => return Err(refuse("`node=NAME` behind the address, in ASCII")),
            },
            (Some(_), Some(_)) => return Err(refuse("an address and `node=NAME`, and nothing else")),
        };
        let target = Target { address: address.clone().into(), node: NodeName::new(node) };
        if let Some(other) = targets.get(&address)
            && *other != target
        {
            return Err(refuse(&format!(
                "one node for each address ({address} is node {} already)",
                other.node
            )));
        }
        targets.insert(address, target);
    }
    Ok(targets.into_values().collect())
}

/// A node's name is printed in logs, tables and errors as it is, so it has no characters that a terminal obeys. The longest
/// name is an address.
fn is_node_name(name: &str) -> bool {
    const MAX: usize = 253 + ":65535".len();
    (1..=MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `host:port` in the one form that identifies a target; `None` if `text` is no address.
fn address(text: &str, default_port: u16) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
            (format!("[{}]", host.parse::<Ipv6Addr>().ok()?), port)
        }
        None => match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => (format!("[{}]", text.parse::<Ipv6Addr>().ok()?), None),
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (text.to_owned(), None),
        },
    };
    let is_name = |host: &str| {
        !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    if !host.starts_with('[') && !is_name(&host) {
        return None;
    }
    let port = match port {
        Some(port) => port.parse::<u16>().ok().filter(|port| *port != 0)?,
        None => default_port,
    };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(entries: &[&str]) -> Vec<(String, String)> {
        let targets = parse(entries.iter().copied(), 9090).unwrap();
        targets.into_iter().map(|t| (t.address.to_string(), t.node.to_string())).collect()
    }

    #[test]
    fn every_form_is_read_and_an_address_listed_twice_is_one_target() {
        let own = |address: &str| (address.to_owned(), address.to_owned());
        assert_eq!(
            parsed(&[
                "10.0.0.1",
                "10.0.0.2:80  node=b # trailing",
                "# a comment",
                "",
                "10.0.0.1:9090",
                "node-3.example:1"
            ]),
            [own("10.0.0.1:9090"), ("10.0.0.2:80".into(), "b".into()), own("node-3.example:1")]
        );
        let long = "x".repeat(253);
        let named = format!("{long}:9090");
        assert_eq!(parsed(&[&long, &format!("{long} node={named}")]), [own(&named)]);
        assert_eq!(
            parsed(&["fd00:0::1", "[fd00::2]", "[FD00::3]:80"]),
            [own("[fd00::1]:9090"), own("[fd00::2]:9090"), own("[fd00::3]:80")]
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for bad in [
            "10.0.0.1:0",
            "10.0.0.1:99999",
            ":80",
            "[fd00::1",
            "[x]:1",
            "a:b:c",
            "h:1 nod=x",
            "h:1 node=",
            "h:1 node=a b",
            "h:1 node=a\u{1b}[31m",
            "h:1 node=\u{202e}a",
            "h/x:1",
        ] {
            let error = parse(["ok:1", bad], 9090).unwrap_err().to_string();
            assert!(error.starts_with("entry 2: ") && error.contains(": expected "), "{error}");
        }
        let error = parse(["a:1 node=x", "a:1 node=y"], 9090).unwrap_err().to_string();
        assert!(error.contains("node x already"), "{error}");
    }
}
