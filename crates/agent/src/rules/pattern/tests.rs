use super::*;

/// Patterns with texts, and whether Go's `regexp.MatchString` finds them there.
const VERDICTS: &[(&str, &[&str], &[&str])] = &[
    // Braces without a repetition stand for themselves.
    ("^x{$", &["x{"], &["x"]),
    ("^a{,5}$", &["a{,5}"], &["", "a", "aaaaa"]),
    ("^a{01}$", &["a{01}"], &["a"]),
    ("^a{1,2$", &["a{1,2"], &["a"]),
    ("^{}$", &["{}"], &[""]),
    ("^a{2}$", &["aa"], &["a", "aaa"]),
    ("^a{1,2}$", &["a", "aa"], &["", "aaa"]),
    ("^a{2,}?$", &["aa", "aaa"], &["a"]),
    // Quoted text.
    (r"^\Qa.b*\E$", &["a.b*"], &["axb*", "a.bb"]),
    (r"^\Qab\E*$", &["a", "abbb"], &["abab"]),
    (r"a\Q+", &["a+"], &["aa"]),
    (r"^a\Q\E*$", &["", "aaa"], &["b"]),
    // Sets know neither intersections nor sets in sets.
    ("^[a-z&&x]$", &["m", "x", "&"], &["A"]),
    ("^[a-c~~b]$", &["a", "b", "~"], &["d"]),
    ("^[a[b]$", &["a", "b", "["], &["c"]),
    ("^[]a]$", &["]", "a"], &["b"]),
    ("^[^]a]$", &["b", "\n"], &["]", "a"]),
    ("^[a-]$", &["a", "-"], &["b"]),
    ("^[--/]$", &["-", ".", "/"], &["0"]),
    ("^[#  ]$", &["#", " "], &["x"]),
    (r"^[\w.-]+$", &["a_9.-"], &["\u{e9}"]),
    ("^[[:alpha:][:^ascii:]]$", &["a", "\u{e9}"], &["1"]),
    ("^[[:space:]]$", &["\u{b}", " "], &["x"]),
    ("^[[:alpha]$", &["[", ":", "a"], &["b"]),
    (r"^[^\x{0}-\x{10FFFF}]?$", &[""], &["a"]),
    // Escapes.
    (r"^\<a\>$", &["<a>"], &["a"]),
    (r"^\_\-\ \&\~\/$", &["_- &~/"], &[""]),
    (r"^\12\0\x41\x{1F600}$", &["\n\0A\u{1f600}"], &[""]),
    (r"^\08$", &["\08"], &["8"]),
    (r"^\b{start}a$", &[], &["a"]),
    (r"\bcaf\b", &["caf\u{e9}"], &["cafe"]),
    (r"f\B.$", &["fe"], &["f\u{e9}"]),
    // Sets that have ASCII characters only.
    (r"^\d$", &["5"], &["\u{665}"]),
    (r"^\w$", &["a", "_"], &["\u{e9}", "-"]),
    (r"^\s$", &[" ", "\t", "\r"], &["\u{b}", "\u{a0}", "\u{85}"]),
    (r"^\S\D\W$", &["\u{b}a-"], &[" a-", "a1-", "aab"]),
    (r"^\pL\PL\p{Greek}\p{^Greek}\p{Lu}$", &["a1\u{3b1}bC"], &["11\u{3b1}bC", "a1\u{3b1}bc"]),
    (r"^[\p{Han}\d]$", &["\u{4e2d}", "1"], &["a"]),
    (r"^\p{Cs}?$", &[""], &["a"]),
    (r"^[\x{d7ff}-\x{dfff}x]$", &["\u{d7ff}", "x"], &["\u{fffd}"]),
    // Flags hold to the end of their group, over alternatives.
    ("^(a(?i)b|c)d$", &["aBd", "abd", "Cd"], &["Abd", "CD"]),
    ("(?i)^straSSe$", &["STRASSE", "\u{17f}trasse"], &["strae"]),
    ("(?i)^k$", &["K", "\u{212a}"], &["c"]),
    (r"(?i)^\w$", &["\u{17f}", "\u{212a}"], &["\u{e9}"]),
    (r"(?i)^[^k]$", &["a"], &["K", "\u{212a}"]),
    ("(?i)^(?-i:a)b$", &["aB"], &["AB"]),
    ("^(?s:.).$", &["\na"], &["\n\n"]),
    ("(?m)^b$", &["a\nb\nc"], &["ab"]),
    ("^b$", &["b"], &["b\n", "a\nb"]),
    ("(?sm)^a.b$", &["x\na\nb\ny"], &["a\n\nb"]),
    ("^(?P<n>a)(?<m>b)(?:c)()$", &["abc"], &["ab"]),
    ("^(?U)a+$", &["aa"], &[""]),
    ("^a(?i)*$", &["aa"], &["AA"]),
    ("^(?:a|)(|b)$", &["", "ab"], &["ba"]),
    ("^(a*)*$", &["aaa"], &["b"]),
    ("^((a{2}){3}|b)$", &["aaaaaa", "b"], &["aa"]),
    ("stratum+tcp", &["stratumtcp", "stratummmtcp"], &["stratum+tcp"]),
    ("^.$", &["\u{e9}", "\u{fffd}"], &["\n", ""]),
    ("^[^a]$", &["\u{fffd}", "\n"], &["a"]),
];

/// Patterns that Go refuses, and the reported problem.
const REFUSED: &[(&str, &str)] = &[
    ("a**", "a repetition of a repetition: `*`"),
    ("a{2}{3}", "a repetition of a repetition: `{3}`"),
    ("a++", "a repetition of a repetition: `+`"),
    ("*a", "a repetition of nothing: `*`"),
    ("a|*", "a repetition of nothing: `*`"),
    ("(*)", "a repetition of nothing: `*`"),
    ("(a", "a parenthesis that is not closed: `(`"),
    ("a)", "a parenthesis that closes nothing: `)`"),
    ("[a", "a bracket that is not closed: `[a`"),
    ("[]", "a bracket that is not closed: `[]`"),
    ("[a--c]", "a range whose end is before its beginning: `a--`"),
    ("[z-a]", "a range whose end is before its beginning: `z-a`"),
    (r"[a-\d]", r"an escape that Go does not know: `\d`"),
    ("[[:foo:]]", "a set of characters that Go does not know: `[:foo:]`"),
    (r"\", r"a backslash at the end: `\`"),
    (r"\y", r"an escape that Go does not know: `\y`"),
    (r"\1", r"an escape that Go does not know: `\1`"),
    (r"a\E", r"an escape that Go does not know: `\E`"),
    (r"\Z", r"an escape that Go does not know: `\Z`"),
    (r"[\b]", r"an escape that Go does not know: `\b`"),
    (r"\x{110000}", r"an escape that Go does not know: `\x{110000}`"),
    (r"a\x{d800}", r"half of a surrogate pair, which no text has: `\x{d800}`"),
    (r"\x{}", r"an escape that Go does not know: `\x{}`"),
    (r"\p{Alphabetic}", r"a set of Unicode characters that is not known: `\p{Alphabetic}`"),
    (r"\p", r"a set of Unicode characters that is not known: `\p`"),
    ("(?=a)", "flags or a kind of group that Go does not know: `(?=a)`"),
    ("(?<!a)", "no name of a group: `(?<!a)`"),
    ("(?x)a b", "flags or a kind of group that Go does not know: `(?x)a b`"),
    ("(?i-)a", "flags or a kind of group that Go does not know: `(?i-)a`"),
    ("(?P<a-b>c)", "no name of a group: `(?P<a-b>c)`"),
    ("a{1001}", "a number of repetitions beyond 1000, or that is smaller than the one before it: `{1001}`"),
    ("a{2,1}", "a number of repetitions beyond 1000, or that is smaller than the one before it: `{2,1}`"),
    ("((a{100}){100}){100}", "repetitions of repetitions, more than 1000 in all: `{100}`"),
];

#[test]
fn patterns_match_as_in_go() {
    for (pattern, found, not_found) in VERDICTS {
        let compiled = Pattern::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        assert_eq!(compiled.as_str(), *pattern);
        for text in *found {
            assert!(compiled.is_match(text), "{pattern} on {text:?}: {}", translate(pattern).unwrap());
        }
        for text in *not_found {
            assert!(!compiled.is_match(text), "{pattern} on {text:?}: {}", translate(pattern).unwrap());
        }
    }
}

#[test]
fn patterns_that_go_refuses_are_refused_and_the_part_is_named() {
    for (pattern, problem) in REFUSED {
        let error = Pattern::new(pattern).expect_err(pattern);
        assert_eq!(error.to_string(), *problem, "{pattern}");
    }
}

#[test]
fn deep_and_large_patterns_are_refused_or_compiled() {
    let nested = |levels: usize| format!("{}a{}", "(".repeat(levels), ")*".repeat(levels));
    assert!(Pattern::new(&nested(MAX_DEPTH / 2)).unwrap().is_match("aaa"));
    assert_eq!(Pattern::new(&nested(MAX_DEPTH)).unwrap_err(), PatternError::Depth);
    assert_eq!(Pattern::new(&"(".repeat(1 << 20)).unwrap_err(), PatternError::Depth);
    let repeated = format!("a{}", "(?i)*".repeat(1 << 16));
    assert_eq!(Pattern::new(&repeated).unwrap_err(), PatternError::Depth);
    let large = Pattern::new(r"(\pL{30}){30}").unwrap_err();
    assert!(matches!(&large, PatternError::Size(_)), "{large}");
}
