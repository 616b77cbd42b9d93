//! Which form of a body a client takes, and which it has already (RFC 9110, sections 12.5.3 and 13.1.2).
//!
//! Nothing here allocates: it is done for every poll, and most polls are answered with 304.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Zstd,
    Gzip,
    /// As it is.
    Identity,
}

impl Encoding {
    /// The ones that we prefer first: zstd is smaller than gzip here, in a tenth of the time.
    pub(super) const ALL: [Self; 3] = [Self::Zstd, Self::Gzip, Self::Identity];

    /// Its name in `Accept-Encoding`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Identity => "identity",
        }
    }

    /// `Content-Encoding`; a body as it is has none.
    pub(super) fn header(self) -> Option<HeaderValue> {
        (self != Self::Identity).then(|| HeaderValue::from_static(self.as_str()))
    }

    fn is_named(self, name: &str) -> bool {
        // `x-gzip` is the same (RFC 9110, section 8.4.1.3).
        name.eq_ignore_ascii_case(self.as_str())
            || (self == Self::Gzip && name.eq_ignore_ascii_case("x-gzip"))
    }
}

/// The encodings that an `Accept-Encoding` accepts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    zstd: Weight,
    gzip: Weight,
    identity: Weight,
}

/// How much an encoding is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Refused,
    /// Taken, but not asked for: less than anything that is.
    Taken,
    /// Asked for, with a q-value in thousandths, never 0.
    Wanted(u16),
}

impl Accepted {
    /// The encodings that a request accepts. Without the header it accepts all, and prefers the unencoded body.
    pub(super) fn of(request: &HeaderMap) -> Self {
        if !request.contains_key(header::ACCEPT_ENCODING) {
            return Self { zstd: Weight::Taken, gzip: Weight::Taken, identity: Weight::Wanted(1000) };
        }
        let (mut zstd, mut gzip, mut identity, mut others) = (None, None, None, None);
        for item in items(request, &header::ACCEPT_ENCODING) {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let name = name.trim_end();
            // An item that can't be parsed is ignored.
            let Some(weight) = weight(parameters) else { continue };
            let place = match Encoding::ALL.into_iter().find(|encoding| encoding.is_named(name)) {
                Some(Encoding::Zstd) => &mut zstd,
                Some(Encoding::Gzip) => &mut gzip,
                Some(Encoding::Identity) => &mut identity,
                None if name == "*" => &mut others,
                None => continue,
            };
            *place = Some(weight);
        }
        // `*` stands for all encodings that are not named. Identity is accepted also if neither it nor `*` is named.
        Self {
            zstd: zstd.or(others).unwrap_or(Weight::Refused),
            gzip: gzip.or(others).unwrap_or(Weight::Refused),
            identity: identity.or(others).unwrap_or(Weight::Taken),
        }
    }

    /// Whether it can be sent in this encoding.
    pub(super) fn takes(self, encoding: Encoding) -> bool {
        self.weight(encoding) > Weight::Refused
    }

    /// The encoding to send: the most wanted, and of those that are wanted equally the one that we prefer. Where the body
    /// `is_small` it stays as it is, unless that is refused. `None` if everything is.
    pub(super) fn best(self, is_small: bool) -> Option<Encoding> {
        if is_small && self.takes(Encoding::Identity) {
            return Some(Encoding::Identity);
        }
        // Of equal ones `max_by_key` takes the last.
        let best = Encoding::ALL.into_iter().rev().max_by_key(|encoding| self.weight(*encoding));
        best.filter(|encoding| self.takes(*encoding))
    }

    fn weight(self, encoding: Encoding) -> Weight {
        match encoding {
            Encoding::Zstd => self.zstd,
            Encoding::Gzip => self.gzip,
            Encoding::Identity => self.identity,
        }
    }
}

/// Of an encoding's parameters the q-value: 0 to 1 with three digits at most, and 1 if there is none.
fn weight(parameters: &str) -> Option<Weight> {
    let parameters = parameters.trim();
    if parameters.is_empty() {
        return Some(Weight::Wanted(1000));
    }
    let value = parameters.strip_prefix("q=").or_else(|| parameters.strip_prefix("Q="))?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(3);
    let thousandths = digits.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match (whole, thousandths) {
        ("0", 0) => Some(Weight::Refused),
        ("0", thousandths) => Some(Weight::Wanted(thousandths)),
        ("1", 0) => Some(Weight::Wanted(1000)),
        _ => None,
    }
}

/// Whether the client has what `etag` stands for: `If-None-Match` is a list of tags, or `*`, and is compared weakly.
pub(super) fn has(request: &HeaderMap, etag: &HeaderValue) -> bool {
    items(request, &header::IF_NONE_MATCH)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes())
}

/// The items of a list, which may be in several headers.
fn items<'a>(request: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = request.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (header::ACCEPT_ENCODING, value.parse().unwrap()));
        let mut headers = HeaderMap::new();
        values.for_each(|(name, value)| _ = headers.append(name, value));
        headers
    }

    #[test]
    fn the_most_wanted_encoding_is_chosen() {
        use Encoding::{Gzip, Identity, Zstd};
        let table: &[(&[&str], Option<Encoding>)] = &[
            (&[], Some(Identity)),
            (&[""], Some(Identity)),
            (&["br"], Some(Identity)),
            (&["gzip"], Some(Gzip)),
            (&["x-gzip"], Some(Gzip)),
            (&["GZip"], Some(Gzip)),
            (&["gzip, deflate, br, zstd"], Some(Zstd)),
            (&["gzip", "zstd"], Some(Zstd)),
            (&["gzip, zstd;q=0.9"], Some(Gzip)),
            (&["gzip;q=0.5,zstd;q=0.50"], Some(Zstd)),
            (&["gzip ; q=0.5 , identity;q=0.5"], Some(Gzip)),
            (&["gzip;q=0.5, identity"], Some(Identity)),
            (&["gzip;q=0.001"], Some(Gzip)),
            (&["gzip;Q=1.000"], Some(Gzip)),
            (&["gzip;q=0"], Some(Identity)),
            (&["gzip;q=0.000"], Some(Identity)),
            (&["*"], Some(Zstd)),
            (&["*, zstd;q=0"], Some(Gzip)),
            (&["gzip;q=0, *;q=0.1"], Some(Zstd)),
            (&["*;q=0"], None),
            (&["*;q=0, gzip;q=0.2"], Some(Gzip)),
            (&["*;q=0, identity;q=0.2"], Some(Identity)),
            (&["identity;q=0"], None),
            (&["identity;q=0, br"], None),
            (&["identity;q=0, gzip"], Some(Gzip)),
            (&["identity;q=0, gzip;q=0.1, zstd;q=0.01"], Some(Gzip)),
            // An item with an invalid q-value is ignored.
            (&["gzip;q=2"], Some(Identity)),
            (&["gzip;q=1.001"], Some(Identity)),
            (&["gzip;q=0.1234"], Some(Identity)),
            (&["gzip;q=-1"], Some(Identity)),
            (&["gzip;q="], Some(Identity)),
            (&["gzip;q=ä"], Some(Identity)),
            (&["gzip;level=9"], Some(Identity)),
            (&[",,;,gzip"], Some(Gzip)),
        ];
        for (values, best) in table {
            assert_eq!(Accepted::of(&asking(values)).best(false), *best, "{values:?}");
        }
    }

    #[test]
    fn a_small_body_stays_as_it_is_unless_that_is_refused() {
        let small = |value| Accepted::of(&asking(&[value])).best(true);
        assert_eq!(small("gzip, zstd"), Some(Encoding::Identity));
        assert_eq!(small("gzip, identity;q=0.1"), Some(Encoding::Identity));
        assert_eq!(small("gzip, identity;q=0"), Some(Encoding::Gzip));
        assert_eq!(small("*;q=0"), None);
    }

    #[test]
    fn who_says_nothing_takes_everything() {
        assert!(Encoding::ALL.into_iter().all(|encoding| Accepted::of(&asking(&[])).takes(encoding)));
        let plain = Accepted::of(&asking(&["identity"]));
        assert!(!plain.takes(Encoding::Gzip) && !plain.takes(Encoding::Zstd));
    }

    #[test]
    fn a_tag_is_known_in_any_of_the_headers_weak_or_strong() {
        let etag = HeaderValue::from_static("\"1-gzip\"");
        let table = [
            ("\"1-gzip\"", true),
            ("W/\"1-gzip\"", true),
            ("\"0\" , \"1-gzip\"", true),
            ("*", true),
            ("\"1\"", false),
            ("1-gzip", false),
            ("w/\"1-gzip\"", false),
            ("", false),
        ];
        for (tags, known) in table {
            let mut request = HeaderMap::new();
            request.append(header::IF_NONE_MATCH, HeaderValue::from_static("\"9\""));
            request.append(header::IF_NONE_MATCH, tags.parse().unwrap());
            assert_eq!(has(&request, &etag), known, "{tags}");
        }
        assert!(!has(&HeaderMap::new(), &etag));
    }
}
