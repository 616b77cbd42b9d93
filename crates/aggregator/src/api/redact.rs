//! Hides secrets in command lines: passwords, tokens, wallet addresses, and the users in URLs.
//!
//! An agent joins the arguments of a process by spaces, so where a value with spaces ends is not known. A command line is
//! hidden too much rather than too little: operators that need all of it have a right of their own.

use std::borrow::Cow;

/// What stands for a secret.
pub(super) const HIDDEN: &str = "***";

/// Parts of names whose values are secrets, in lower case.
const SECRET_NAMES: [&str; 16] = [
    "pass",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "accesskey",
    "access-key",
    "access_key",
    "private",
    "credential",
    "auth",
    "wallet",
    "cookie",
    "session",
];
/// Names whose values are secrets, in lower case.
const SECRET_WORDS: [&str; 11] =
    ["user", "userpass", "login", "wal", "ewal", "dwal", "zwal", "addr", "key", "pw", "sas"];
/// Names whose values are secrets of several words, in lower case.
const PHRASES: [&str; 4] = ["mnemonic", "phrase", "seed", "passphrase"];
/// Options of one letter whose values are secrets: the users and passwords of miners, databases and `curl`.
const SECRET_LETTERS: &str = "aOpPuw";
/// Programs that take a password in the same word as `-p`.
const ATTACHED: [&str; 3] = ["mysql", "mariadb", "sshpass"];
/// What precedes the value in an `Authorization` header.
const SCHEMES: [&str; 4] = ["bearer", "basic", "token", "digest"];
/// The shortest run of letters and digits that may be a token or an address.
const MIN_TOKEN: usize = 20;
/// The shortest run of the characters of Base64 that may be a token.
const MIN_BASE64: usize = 40;

/// `cmdline` with [`HIDDEN`] in the place of its secrets.
pub(super) fn redacted(cmdline: &str) -> Cow<'_, str> {
    let mut line = Line { shown: String::with_capacity(cmdline.len()), next: Next::Any, is_attached: false };
    let mut rest = cmdline;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let (space, after) = rest.split_at(end);
        let (word, after) = after.split_at(after.find(char::is_whitespace).unwrap_or(after.len()));
        line.shown.push_str(space);
        line.add(word);
        rest = after;
    }
    if line.shown == cmdline { Cow::Borrowed(cmdline) } else { Cow::Owned(line.shown) }
}

/// A command line while it is read.
struct Line {
    shown: String,
    next: Next,
    /// The program takes a password in the same word as `-p`.
    is_attached: bool,
}

/// What the next word is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Anything.
    Any,
    /// A secret.
    Secret,
    /// A secret, or the scheme before it.
    Header,
    /// A secret of several words, which ends with the next option.
    Phrase,
}

impl Line {
    fn add(&mut self, word: &str) {
        if word.is_empty() {
            return;
        }
        let next = std::mem::replace(&mut self.next, Next::Any);
        let is_option = word.starts_with('-') && word.len() > 1;
        match next {
            Next::Header if SCHEMES.contains(&bare(word).to_ascii_lowercase().as_str()) => {
                self.shown.push_str(word);
                self.next = Next::Secret;
            }
            Next::Phrase if !is_option => {
                self.next = Next::Phrase;
                self.hide();
            }
            // A long option follows one that was given without a value.
            Next::Secret | Next::Header if !word.starts_with("--") => self.hide(),
            _ => self.read(word),
        }
    }

    /// Adds [`HIDDEN`] once for several secrets in a row.
    fn hide(&mut self) {
        let before = self.shown.trim_end();
        if self.next == Next::Phrase && before.ends_with(HIDDEN) {
            self.shown.truncate(before.len());
        } else {
            self.shown.push_str(HIDDEN);
        }
    }

    fn read(&mut self, word: &str) {
        // The user of a URL may look like a name, and its password like a value.
        let without_user_of_url = if word.contains("://") { without_user(word) } else { Cow::Borrowed(word) };
        let word = &*without_user_of_url;
        if self.shown.trim().is_empty() {
            let program = word.rsplit('/').next().unwrap_or(word);
            self.is_attached = ATTACHED.iter().any(|name| program.starts_with(name));
        }
        let option = word.trim_start_matches('-');
        let is_short = word.starts_with('-') && !word.starts_with("--");
        let mut letters = option.chars();
        if is_short && self.is_attached && option.len() > 1 && letters.next() == Some('p') {
            self.shown.push_str("-p");
            return self.hide();
        }
        if let Some(named) = NamedValue::of(word) {
            self.value(named);
        } else if option.len() < word.len() && is_phrase(option) {
            self.shown.push_str(word);
            self.next = Next::Phrase;
        } else if option.len() < word.len() && is_secret_option(option, is_short) {
            self.shown.push_str(word);
            self.next = Next::Secret;
        } else {
            self.shown.push_str(&without_tokens(&without_user(word)));
        }
    }

    fn value(&mut self, NamedValue { before, value, is_phrase }: NamedValue<'_>) {
        self.shown.push_str(&without_tokens(&without_user(before)));
        if bare(value).is_empty() {
            self.shown.push_str(value);
            self.next = match is_phrase {
                true => Next::Phrase,
                false if before.ends_with(':') => Next::Header,
                false => Next::Secret,
            };
            return;
        }
        // In a query, the next name follows.
        let end = if before.contains(['?', '&']) { value.find('&') } else { None };
        let (_, rest) = value.split_at(end.unwrap_or(value.len()));
        self.hide();
        if !rest.is_empty() {
            self.read(rest);
        } else if is_phrase {
            self.next = Next::Phrase;
        }
    }
}

/// A word without the quotes around it.
fn bare(word: &str) -> &str {
    word.trim_matches(|c| matches!(c, '"' | '\'' | ',' | ';'))
}

/// A word with the name of a secret and its value.
struct NamedValue<'a> {
    /// Up to the `=` or `:` behind the name.
    before: &'a str,
    value: &'a str,
    /// The secret may have several words.
    is_phrase: bool,
}

impl<'a> NamedValue<'a> {
    fn of(word: &'a str) -> Option<Self> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        word.match_indices(['=', ':']).find_map(|(place, _)| {
            let (before, value) = word.split_at(place + 1);
            // `"password":"x"` has quotes around the name.
            let name = before.trim_end_matches(['=', ':', '"', '\'']);
            let name = name.rsplit(|c| !is_of_name(c)).next()?.trim_start_matches('-');
            // `user://` and `token::Name` name no value.
            let is_value = !value.starts_with("//") && !value.starts_with(':');
            let is_phrase = is_phrase(name);
            (is_value && (is_secret(name) || is_phrase)).then_some(Self { before, value, is_phrase })
        })
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
        || SECRET_WORDS.contains(&name.as_str())
        || name
            .rsplit(['-', '_', '.'])
            .next()
            .is_some_and(|last| ["key", "pw", "user", "pin"].contains(&last))
}

fn is_phrase(name: &str) -> bool {
    PHRASES.contains(&name.to_ascii_lowercase().as_str())
}

fn is_secret_option(option: &str, is_short: bool) -> bool {
    match option.len() {
        1 => is_short && SECRET_LETTERS.contains(option),
        _ => is_secret(option),
    }
}

/// Hides the user and the password of a URL, and of `user:password@host`.
fn without_user(word: &str) -> Cow<'_, str> {
    let (scheme, rest) = match word.find("://") {
        Some(at) => word.split_at(at + 3),
        None => ("", word),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end).unwrap_or(rest);
    // A password may have any character, so the last `@` ends it; one with a `/` in it ends the authority too early.
    let Some(at) = authority.rfind('@').or_else(|| rest.rfind('@').filter(|_| !scheme.is_empty())) else {
        return Cow::Borrowed(word);
    };
    let (user, host) = rest.split_at(at);
    if scheme.is_empty() && !user.contains(':') {
        Cow::Borrowed(word)
    } else {
        format!("{scheme}{HIDDEN}{host}").into()
    }
}

/// Hides runs of characters that are too long and too mixed for a word: tokens, keys, wallet addresses. Paths are shown.
fn without_tokens(word: &str) -> Cow<'_, str> {
    let is_of_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-' | '.');
    let is_token = |run: &str| !run.starts_with(['/', '.']) && is_mixed(run) && has_both_cases(run);
    let hidden = hide_runs(word, MIN_BASE64, is_of_base64, is_token);
    match hide_runs(&hidden, MIN_TOKEN, |c| c.is_ascii_alphanumeric(), is_mixed) {
        Cow::Borrowed(_) => hidden,
        Cow::Owned(all) => all.into(),
    }
}

/// Hides each run of at least `least` characters of which `is_part` holds, if `is_secret` holds for it.
fn hide_runs(
    text: &str,
    least: usize,
    is_part: impl Fn(char) -> bool,
    is_secret: impl Fn(&str) -> bool,
) -> Cow<'_, str> {
    if text.len() < least {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut rest) = (String::new(), text);
    while let Some(start) = rest.find(&is_part) {
        let (before, after) = rest.split_at(start);
        let (run, after) = after.split_at(after.find(|c| !is_part(c)).unwrap_or(after.len()));
        shown.push_str(before);
        shown.push_str(if run.len() >= least && is_secret(run) { HIDDEN } else { run });
        rest = after;
    }
    shown.push_str(rest);
    if shown == text { Cow::Borrowed(text) } else { shown.into() }
}

fn is_mixed(run: &str) -> bool {
    run.bytes().any(|byte| byte.is_ascii_digit()) && run.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn has_both_cases(run: &str) -> bool {
    run.bytes().any(|byte| byte.is_ascii_uppercase()) && run.bytes().any(|byte| byte.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MONERO: &str =
        "48edfHu7V9Z84YzzMa6fUueoELZ9ZRXq9VetWzYGzKt52XU5xvqgzYnDK9URnRoJMk1j8nLwEVsaSWJ4fhdUyZijBGUicoD";

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        for (cmdline, shown) in [
            (
                "xmrig -o pool:3333 -u 44x -p hunter2 --threads 4",
                "xmrig -o pool:3333 -u *** -p *** --threads 4",
            ),
            (
                "xmrig --url=stratum+tcp://pool:3333 --user=44x --pass=x",
                "xmrig --url=stratum+tcp://pool:3333 --user=*** --pass=***",
            ),
            (&format!("/opt/miner {MONERO}.rig1 -k"), "/opt/miner *** -k"),
            (&format!("/opt/miner pool/{}/rig1", &MONERO[..25]), "/opt/miner pool/***/rig1"),
            (
                "ethminer -P stratum://0x1234567890abcdef1234567890abcdef12345678.w@eu.pool:4444",
                "ethminer -P ***",
            ),
            ("ethminer stratum://0xwallet.w:x@eu.pool:4444/a", "ethminer stratum://***@eu.pool:4444/a"),
            ("miner stratum1+ssl://pool/with/path@host", "miner stratum1+ssl://***@host"),
            (
                "git clone https://bob:ghp_secret@github.com/a/b.git",
                "git clone https://***@github.com/a/b.git",
            ),
            ("git clone git@github.com:a/b.git", "git clone git@github.com:a/b.git"),
            (
                "curl -H Authorization: Bearer abc.def https://x/y",
                "curl -H Authorization: Bearer *** https://x/y",
            ),
            ("curl -H 'Authorization: Basic YTpi' x", "curl -H 'Authorization: Basic *** x"),
            ("curl -u bob:secret https://x", "curl -u *** https://x"),
            ("curl https://x/y?token=abc&b=2&api_key=k", "curl https://x/y?token=***&b=2&api_key=***"),
            ("env AWS_SECRET_ACCESS_KEY=abc PATH=/bin sh", "env AWS_SECRET_ACCESS_KEY=*** PATH=/bin sh"),
            ("java -Ddb.password=abc -jar app.jar", "java -Ddb.password=*** -jar app.jar"),
            ("mysqldump -uroot -pSecret db", "mysqldump -uroot -p*** db"),
            ("ssh -p 2222 host", "ssh -p *** host"),
            ("prog {\"password\":\"abc\",\"a\":1}", "prog {\"password\":***"),
            ("prog --password --verbose", "prog --password --verbose"),
            ("prog --password= abc", "prog --password= ***"),
            ("wallet --mnemonic one two three --to x", "wallet --mnemonic *** --to x"),
            ("docker run -e TOKEN=a:b@c img", "docker run -e TOKEN=*** img"),
            ("node --key=abc --keyboard=de", "node --key=*** --keyboard=de"),
            ("nginx: worker process", "nginx: worker process"),
            (
                "/usr/lib/x86_64-linux-gnu/libexec/abcdefghijklmnopqrst --a",
                "/usr/lib/x86_64-linux-gnu/libexec/abcdefghijklmnopqrst --a",
            ),
            ("sh -c wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "sh -c ***"),
            (
                "sh eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.Et9HFtf9R3GEMA0IICOfFMVXY7kkTX1wr4qCyhIf58U",
                "sh ***",
            ),
            ("  spaces   stay  ", "  spaces   stay  "),
            ("", ""),
        ] {
            assert_eq!(redacted(cmdline), shown);
            assert_eq!(redacted(&redacted(cmdline)), shown, "again");
        }
    }

    /// A secret as an argument may have it: no spaces, and nothing that is shown otherwise.
    fn secret() -> impl Strategy<Value = String> {
        "S3[a-zA-Z0-9!$%^*()_+~.,;|]{6,40}"
    }

    proptest! {
        #[test]
        fn a_secret_in_any_of_its_usual_places_is_hidden(
            secret in secret(),
            before in "[ a-z/.-]{0,20}",
            form in 0..11_usize,
        ) {
            let cmdline = match form {
                0 => format!("{before} --password {secret} x"),
                1 => format!("{before} --db-password={secret} x"),
                2 => format!("{before} MYSQL_PWD={secret} x"),
                3 => format!("{before} https://user:{secret}@host/x"),
                4 => format!("{before} -u {secret} x"),
                5 => format!("{before} -H X-Auth-Token:{secret} x"),
                6 => format!("{before} -H Authorization: Bearer {secret} x"),
                7 => format!("mysql -p{secret} x"),
                8 => format!("{before} --seed a {secret} b"),
                9 => format!("{before} --wallet={secret}"),
                _ => format!("{before} redis://:{secret}@host:6379/0"),
            };
            let shown = redacted(&cmdline);
            prop_assert!(!shown.contains(&secret) && !shown.contains("S3"), "{cmdline:?}: {shown:?}");
        }

        #[test]
        fn any_text_is_read_and_hiding_it_again_changes_nothing(cmdline in "\\PC{0,200}|[-=:@/?&a-z3A ]{0,80}") {
            let once = redacted(&cmdline).into_owned();
            prop_assert_eq!(redacted(&once).into_owned(), once);
        }
    }
}
