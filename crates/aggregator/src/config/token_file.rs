//! The file of `api.token_file`: one line `NAME TOKEN SCOPE…` for each account; blank lines are skipped, and what
//! follows a `#`.
//!
//! No error ever quotes a line: tokens are secrets, also those that are written wrongly.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use procscan_core::names::is_dns_label;

use crate::plain_file;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// The shortest token, because only its length keeps others from guessing it.
const MIN_TOKEN: usize = 16;
/// The longest name.
const MAX_NAME: usize = 253;
/// What a line may hold after its token.
const SCOPES: &str =
    "read, cmdline, operate, metrics or namespace=NAME after the token, or nothing for everything";

/// The contents of the file.
pub(crate) struct TokenFile {
    /// The accounts in the file. One account may have several tokens, so that they can be replaced one after the other.
    pub(crate) accounts: Vec<Account>,
    /// Whether every user of the machine may read the file.
    pub(crate) is_open: bool,
}

/// One line. No `Debug`: it would show the token.
pub(crate) struct Account {
    /// The account's name in the log of decisions.
    pub(crate) name: String,
    /// The bearer token of the account.
    pub(crate) token: String,
    /// What the account may do.
    pub(crate) scopes: Scopes,
}

/// What an account of the token file may do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the file")]
pub(crate) struct Scopes {
    /// It may read.
    pub(crate) read: bool,
    /// It may read whole command lines.
    pub(crate) cmdline: bool,
    /// It may send operator commands.
    pub(crate) operate: bool,
    /// It may read the metrics.
    pub(crate) metrics: bool,
    /// The namespaces whose Apps it may read and operate on; all of them if there are none.
    pub(crate) namespaces: Vec<String>,
}

impl Scopes {
    /// The scopes of a line that names none.
    pub(crate) fn everything() -> Self {
        Self { read: true, cmdline: true, operate: true, metrics: true, namespaces: Vec::new() }
    }

    /// From the words of a line. The error is what is expected instead.
    fn of(words: &[&str]) -> Result<Self, &'static str> {
        if words.is_empty() {
            return Ok(Self::everything());
        }
        let has = |name| words.contains(&name);
        let mut namespaces = Vec::new();
        for word in words {
            match word.strip_prefix("namespace=") {
                Some(namespace) if is_dns_label(namespace) => namespaces.push(namespace.to_owned()),
                Some(_) => {
                    return Err("the name of a namespace after `namespace=`: 1 to 63 of a-z, 0-9 and -");
                }
                None if ["read", "cmdline", "operate", "metrics"].contains(word) => {}
                None => return Err(SCOPES),
            }
        }
        // The metrics count the Apps of all namespaces.
        if has("metrics") && !namespaces.is_empty() {
            return Err("`metrics` on a line without `namespace=`");
        }
        let (cmdline, operate) = (has("cmdline"), has("operate"));
        Ok(Self {
            read: has("read") || cmdline || operate || !namespaces.is_empty(),
            cmdline,
            operate,
            metrics: has("metrics"),
            namespaces,
        })
    }

    /// Whether the scopes reach what belongs to `namespace`; `None` stands for all namespaces.
    pub(crate) fn reach(&self, namespace: Option<&str>) -> bool {
        self.namespaces.is_empty()
            || namespace.is_some_and(|namespace| self.namespaces.iter().any(|own| own == namespace))
    }
}

/// The words of a line, as far as they differ from those for everything.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.read, "read"),
            (self.cmdline, "cmdline"),
            (self.operate, "operate"),
            (self.metrics, "metrics"),
        ];
        let scopes = names.into_iter().filter(|(has, _)| *has).map(|(_, name)| name.to_owned());
        let namespaces = self.namespaces.iter().map(|namespace| format!("namespace={namespace}"));
        f.write_str(&scopes.chain(namespaces).collect::<Vec<_>>().join(" "))
    }
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenFileError {
    /// The file is not there, or may not be read.
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    /// The file is a directory, a pipe or a device.
    #[error("invalid value: expected a plain file of up to 1 MiB")]
    NotPlain,
    /// The file is too large.
    #[error("it is too large: expected a plain file of up to 1 MiB")]
    TooLarge,
    /// A line is wrong.
    #[error("line {number}: invalid value: expected {expected}")]
    Line {
        /// The number of the line, from 1 on.
        number: usize,
        /// What the line may hold instead.
        expected: String,
    },
}

impl TokenFileError {
    /// Whether the file is gone or must not be read, which operators may have done on purpose. Any other error may be one of this
    /// machine or its disk, such as too many open files, or of what is written.
    pub(crate) fn is_absence(&self) -> bool {
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        match self {
            Self::Unreadable(error) => matches!(error.kind(), NotFound | PermissionDenied | NotADirectory),
            Self::NotPlain => true,
            Self::TooLarge | Self::Line { .. } => false,
        }
    }
}

/// Reads the file.
pub(crate) fn read(path: &Path) -> Result<TokenFile, TokenFileError> {
    let file = match plain_file::open(path) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Err(TokenFileError::NotPlain),
        file => file?,
    };
    let is_open = file.metadata()?.permissions().mode() & 0o004 != 0;
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE) {
        return Err(TokenFileError::TooLarge);
    }
    Ok(TokenFile { accounts: parse(&text)?, is_open })
}

fn parse(text: &str) -> Result<Vec<Account>, TokenFileError> {
    let mut accounts: Vec<Account> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let refuse =
            |expected: &str| TokenFileError::Line { number: index + 1, expected: expected.to_owned() };
        let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
        let Some(name) = words.next() else { continue };
        let Some(token) = words.next() else {
            return Err(refuse("a name and a token: NAME TOKEN SCOPE…"));
        };
        let scopes: Vec<&str> = words.collect();
        if !is_name(name) {
            return Err(refuse(
                "a name of letters, digits and . _ - + @ / : that does not end in a colon, before the token",
            ));
        }
        if !is_token(token) || token.len() < MIN_TOKEN {
            return Err(refuse("a token of at least 16 letters, digits and - . _ ~ + / =, after the name"));
        }
        let scopes = Scopes::of(&scopes).map_err(refuse)?;
        match accounts.iter().find(|account| account.token == token) {
            Some(other) if other.name != name => {
                return Err(refuse(&format!(
                    "a token of one's own, and this one is {}'s already",
                    other.name
                )));
            }
            Some(other) if other.scopes != scopes => {
                return Err(refuse("the scopes that an earlier line gives this token"));
            }
            Some(_) => {}
            None => accounts.push(Account { name: name.to_owned(), token: token.to_owned(), scopes }),
        }
    }
    Ok(accounts)
}

fn is_name(text: &str) -> bool {
    text.chars().count() <= MAX_NAME
        && !text.ends_with(':')
        && text.chars().all(|c| c.is_alphanumeric() || "._-+@/:".contains(c))
}

/// Whether `text` has the form of a bearer token (RFC 6750).
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaa";
    const B: &str = "Bb0-._~+/BBBBBB==";

    fn read_accounts(text: &str) -> Vec<(String, String)> {
        let accounts = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        accounts.into_iter().map(|account| (account.name, account.token)).collect()
    }

    #[test]
    fn the_scopes_of_a_line_say_what_its_account_may_do() {
        let scopes = |words: &str| {
            let accounts = parse(&format!("alice {A} {words}\n")).unwrap_or_else(|e| panic!("{words}: {e}"));
            accounts.into_iter().next().unwrap().scopes
        };
        for (words, shown) in [
            ("", "read cmdline operate metrics"),
            ("# read", "read cmdline operate metrics"),
            ("read", "read"),
            ("metrics", "metrics"),
            ("cmdline", "read cmdline"),
            ("operate", "read operate"),
            ("namespace=ns-a", "read namespace=ns-a"),
            ("operate namespace=ns-a namespace=ns-b # both", "read operate namespace=ns-a namespace=ns-b"),
        ] {
            assert_eq!(scopes(words).to_string(), shown, "{words}");
        }
        let of_two = scopes("namespace=ns-a namespace=ns-b");
        assert!(of_two.reach(Some("ns-a")) && of_two.reach(Some("ns-b")));
        assert!(!of_two.reach(Some("ns-c")) && !of_two.reach(Some("ns")) && !of_two.reach(None));
        assert!(scopes("read").reach(None) && scopes("read").reach(Some("ns-c")));
        for bad in
            ["all", "READ", "namespace=", "namespace=NS", "namespace=ns-a,ns-b", "metrics namespace=ns-a"]
        {
            let error = parse(&format!("alice {A} {bad}\n")).err().expect(bad).to_string();
            assert!(error.starts_with("line 1: invalid value: expected "), "{error}");
        }
        let error = parse(&format!("alice {A} read\nalice {A}\n")).err().unwrap().to_string();
        assert!(error.starts_with("line 2: ") && error.contains("scopes"), "{error}");
    }

    #[test]
    fn each_line_is_an_account() {
        let text = format!(
            "# accounts\n\nalice {A} # the first\n  系统:bob@example.com\t{B}\nalice cccccccccccccccc\r\nalice {A}\n"
        );
        let expected = [("alice", A), ("系统:bob@example.com", B), ("alice", "cccccccccccccccc")];
        assert_eq!(read_accounts(&text), expected.map(|(name, token)| (name.to_owned(), token.to_owned())));
        assert_eq!(read_accounts("# no account\n"), []);
    }

    #[test]
    fn only_a_file_that_is_gone_or_must_not_be_read_is_an_absence() {
        use rustix::io::Errno;
        let is_absence = |errno: Errno| {
            TokenFileError::from(io::Error::from_raw_os_error(errno.raw_os_error())).is_absence()
        };
        for errno in [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::PERM] {
            assert!(is_absence(errno), "{errno}");
        }
        // Of this machine or its disk; the file may be as it was.
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO, Errno::STALE, Errno::TIMEDOUT] {
            assert!(!is_absence(errno), "{errno}");
        }
        assert!(TokenFileError::NotPlain.is_absence() && !TokenFileError::TooLarge.is_absence());
    }

    #[test]
    fn mistakes_are_named_by_their_line_and_never_shown() {
        for bad in [
            "secretsecretsecret",
            "bob secretsecretsecret secret",
            "bob: secretsecretsecret",
            "b*b secretsecretsecret",
            "bob secretsecret",
            "bob secretsecret\"secret\"",
            "bob aaaaaaaaaaaaaaaa",
        ] {
            let error = parse(&format!("alice {A}\n{bad}\n")).err().expect(bad).to_string();
            assert!(error.starts_with("line 2: invalid value: expected "), "{error}");
            assert!(!error.contains("secret") && !error.contains(A), "{error}");
        }
        assert!(parse(&format!("{} {A}", "n".repeat(254))).is_err());
    }

    #[test]
    fn the_file_is_plain_and_no_larger_than_it_may_be() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read(directory.path()), Err(TokenFileError::NotPlain)));
        let path = directory.path().join("tokens");
        assert!(matches!(read(&path), Err(TokenFileError::Unreadable(_))));
        for (len, is_read) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            std::fs::write(&path, "#".repeat(len)).unwrap();
            assert_eq!(read(&path).is_ok(), is_read);
        }
        for (mode, is_open) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            std::fs::write(&path, "").unwrap();
            assert_eq!(read(&path).unwrap().is_open, is_open, "{mode:o}");
        }
    }
}
