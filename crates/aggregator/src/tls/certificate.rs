//! The end of a certificate's validity: the one field of it that operators need to see (RFC 5280, section 4.1).
//!
//! rustls checks certificates and shows none of their fields. A library that reads all of them would be larger than what it
//! is needed for.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// The tag of a SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// The tag of the version, which a certificate of version 1 has not.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate in DER expires; `None` if that can't be read.
pub(super) fn expiry(der: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = rest(fields)?;
    }
    // The serial number, the algorithm of the signature, and the issuer.
    for _ in 0..3 {
        fields = rest(fields)?;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let not_after = rest(validity)?;
    match *not_after.first()? {
        UTC_TIME => time(element(not_after, UTC_TIME)?.0, 2),
        GENERALIZED_TIME => time(element(not_after, GENERALIZED_TIME)?.0, 4),
        _ => None,
    }
}

/// The contents of the element at the beginning, which has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, der) = der.split_first()?;
    if *found != tag {
        return None;
    }
    let (first, der) = der.split_first()?;
    let (length, der) = if *first < 0x80 {
        (usize::from(*first), der)
    } else {
        // As many bytes as the lower bits say have the length.
        let (bytes, der) = der.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), der)
    };
    der.split_at_checked(length)
}

/// What follows the element at the beginning.
fn rest(der: &[u8]) -> Option<&[u8]> {
    element(der, *der.first()?).map(|(_, rest)| rest)
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time(text: &[u8], year_digits: usize) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = text.split_at_checked(year_digits)?;
    let year: i16 = year.parse().ok()?;
    let year = match year_digits {
        // Two digits stand for the years from 1950 to 2049.
        2 if year < 50 => 2000 + year,
        2 => 1900 + year,
        _ => year,
    };
    let mut pairs =
        rest.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok()?.parse::<i8>().ok());
    let mut next = || pairs.next().flatten();
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let time = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    time.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_times_are_read() {
        assert_eq!(time(b"491231235959Z", 2), "2049-12-31T23:59:59Z".parse().ok());
        assert_eq!(time(b"500101000000Z", 2), "1950-01-01T00:00:00Z".parse().ok());
        assert_eq!(time(b"20500101000000Z", 4), "2050-01-01T00:00:00Z".parse().ok());
        for bad in [&b""[..], b"Z", b"491231235959", b"49123123595Z", b"491331235959Z", b"4912\xff1235959Z"] {
            assert_eq!(time(bad, 2), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end_and_no_input_panics() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let der = parameters.self_signed(&key).unwrap().der().to_vec();
        assert_eq!(expiry(&der), "2031-02-03T00:00:00Z".parse().ok());
        for end in 0..der.len() {
            let _ = expiry(&der[..end]);
        }
        for place in 0..der.len().min(200) {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut broken = der.clone();
                broken[place] = value;
                let _ = expiry(&broken);
            }
        }
        assert_eq!(expiry(b""), None);
        assert_eq!(expiry(&[SEQUENCE, 0x85, 1, 1, 1, 1, 1]), None);
    }
}
