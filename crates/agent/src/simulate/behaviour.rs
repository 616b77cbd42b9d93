//! The ways in which a simulated node can misbehave, and their names in options and scripts.

use std::{fmt, str::FromStr, time::Duration};

/// How a simulated node answers `/api/violations`. Its `/health` always answers `ok`, as that of a stuck agent often does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers at once and truthfully.
    #[default]
    Healthy,
    /// The whole answer is delayed.
    Slow(Duration),
    /// The answer arrives one byte per interval.
    Drip(Duration),
    /// Takes the request and never answers.
    Hang,
    /// Takes the request and resets the connection.
    Reset,
    /// Status 500.
    Error500,
    /// Status 200 with bytes that are neither JSON nor UTF-8.
    Garbage,
    /// A JSON array that never ends, as fast as the reader takes it.
    Endless,
    /// One record with a command line of 1 MiB next to the normal ones.
    HugeRecord,
    /// All timestamps are six hours old and never advance.
    StaleTimestamps,
    /// Scans as the real agent does, in any mode of the node; see [`Mode::Upstream`].
    OneAtATime,
    /// Answers `[]`, as an agent that was restarted and has not scanned yet.
    Restarted,
    /// About 1 MiB of gzip that decompresses to a valid, empty array of 1 GiB.
    GzipBomb,
    /// About 32 KiB of zstd that decompresses to the same.
    ZstdBomb,
    /// The body is `null`.
    Null,
    /// The array is wrapped into `{"violations":[…]}`.
    Wrapped,
    /// Good records among malformed ones.
    MixedBad,
    /// No `Date` header.
    NoDate,
    /// The clock is off by this many seconds, in the `Date` header and in timestamps alike.
    Skewed(i64),
    /// Redirects to `/elsewhere` on the same node; [`Fleet::requests`](super::Fleet::requests) counts requests that follow.
    Redirect,
    /// A tenant beside the offenders has a command line of so many bytes on the wire, rounded up to 48 KiB: all of it `<`,
    /// which the agent escapes. Its timestamp comes after it, and then records of other tenants.
    LongCmdline(u64),
    /// A tenant beside the offenders has so many processes of different names in one Pod. Records of other tenants
    /// come after them.
    Flood(u32),
    /// The same with 80 processes whose command lines are 62 KiB each: together they exceed 4 MiB.
    FloodLong,
    /// After the normal records come chunks of one byte, each with an extension of 16 KiB, without end.
    ChunkExtensions,
    /// The normal records as gzip, and then two million gzip members that are empty.
    GzipMembers,
    /// gzip with 1 KiB of zeros after its end, as files in blocks of fixed size have.
    ZeroPadding,
    /// gzip under its old name.
    XGzip,
    /// Command lines with half of a surrogate pair, as Python writes a byte that is not UTF-8.
    LoneSurrogates,
}

/// Behaviours without an argument. `from_str` and `Display` have the others.
const PLAIN: [(&str, Behaviour); 23] = [
    ("healthy", Behaviour::Healthy),
    ("hang", Behaviour::Hang),
    ("reset", Behaviour::Reset),
    ("error500", Behaviour::Error500),
    ("garbage", Behaviour::Garbage),
    ("endless", Behaviour::Endless),
    ("huge-record", Behaviour::HugeRecord),
    ("stale-timestamps", Behaviour::StaleTimestamps),
    ("one-at-a-time", Behaviour::OneAtATime),
    ("restarted", Behaviour::Restarted),
    ("gzip-bomb", Behaviour::GzipBomb),
    ("zstd-bomb", Behaviour::ZstdBomb),
    ("null", Behaviour::Null),
    ("wrapped", Behaviour::Wrapped),
    ("mixed-bad", Behaviour::MixedBad),
    ("no-date", Behaviour::NoDate),
    ("redirect", Behaviour::Redirect),
    ("flood-long", Behaviour::FloodLong),
    ("chunk-extensions", Behaviour::ChunkExtensions),
    ("gzip-members", Behaviour::GzipMembers),
    ("zero-padding", Behaviour::ZeroPadding),
    ("x-gzip", Behaviour::XGzip),
    ("lone-surrogates", Behaviour::LoneSurrogates),
];
/// The most records of [`Behaviour::Flood`].
const MOST_RECORDS: u32 = 1_000_000;
/// The longest command line of [`Behaviour::LongCmdline`]: 1 GiB.
const MOST_CMDLINE: u64 = 1 << 30;

impl Behaviour {
    /// All forms that parse, for help texts: `healthy, hang, …, slow=DURATION, drip=DURATION, skewed=±DURATION, …`.
    pub fn forms() -> String {
        let plain = PLAIN.map(|(name, _)| name).join(", ");
        format!("{plain}, slow=DURATION, drip=DURATION, skewed=±DURATION, long-cmdline=SIZE, flood=RECORDS")
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow(delay) => write!(to, "slow={}", compact(*delay)),
            Self::Drip(pause) => write!(to, "drip={}", compact(*pause)),
            Self::Skewed(seconds) => {
                let sign = if *seconds < 0 { "-" } else { "" };
                write!(to, "skewed={sign}{}", compact(Duration::from_secs(seconds.unsigned_abs())))
            }
            Self::LongCmdline(bytes) => write!(to, "long-cmdline={}", size(*bytes)),
            Self::Flood(records) => write!(to, "flood={records}"),
            plain => {
                let name = PLAIN
                    .iter()
                    .find(|(_, behaviour)| behaviour == plain)
                    .map_or("healthy", |(name, _)| name);
                to.write_str(name)
            }
        }
    }
}

/// A duration without spaces, because a behaviour is one argument. It is parsed with or without spaces.
fn compact(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// A size in the largest unit of which it is a whole number.
fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = units.into_iter().find(|(_, bits)| bytes > 0 && bytes.trailing_zeros() >= *bits);
    whole.map_or_else(|| format!("{bytes}B"), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}

/// Why a text names no behaviour or mode.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BehaviourError {
    /// There is no behaviour of this name, or its argument is missing or not expected.
    #[error("invalid behaviour `{given}`: expected one of {}", Behaviour::forms())]
    Unknown {
        /// The text.
        given: String,
    },
    /// The part after `=` is no duration.
    #[error("invalid duration `{given}`: {source}; expected a duration such as `500ms` or `1h30m`")]
    Duration {
        /// The text.
        given: String,
        /// What is wrong with it.
        source: humantime::DurationError,
    },
    /// The part after `=` is not a size, or out of bounds.
    #[error("invalid size `{given}`: expected 1B to 1GiB, such as `24MiB`")]
    Size {
        /// The text.
        given: String,
    },
    /// The part after `=` is not a number of records, or out of bounds.
    #[error("invalid number of records `{given}`: expected 1 to {MOST_RECORDS}")]
    Records {
        /// The text.
        given: String,
    },
    /// The count after `:` is no number above zero.
    #[error("invalid value `{given}`: expected the number of nodes, at least 1, after the colon")]
    Count {
        /// The text.
        given: String,
    },
    /// There is no mode of this name.
    #[error("invalid mode `{given}`: expected one of correct, upstream")]
    Mode {
        /// The text.
        given: String,
    },
}

impl FromStr for Behaviour {
    type Err = BehaviourError;

    /// Reads `hang`, `slow=5s`, `skewed=-1h`, `long-cmdline=24MiB` and the like, see [`Behaviour::forms`].
    fn from_str(text: &str) -> Result<Self, BehaviourError> {
        let duration = |value: &str| {
            humantime::parse_duration(value)
                .map_err(|source| BehaviourError::Duration { given: text.to_owned(), source })
        };
        let plain = || PLAIN.iter().find(|(name, _)| *name == text).map(|(_, behaviour)| *behaviour);
        match text.split_once('=') {
            Some(("slow", delay)) => Ok(Self::Slow(duration(delay)?)),
            Some(("drip", pause)) => Ok(Self::Drip(duration(pause)?)),
            Some(("skewed", skew)) => {
                let seconds = duration(skew.trim_start_matches(['-', '+']))?.as_secs();
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                Ok(Self::Skewed(if skew.starts_with('-') { -seconds } else { seconds }))
            }
            Some(("long-cmdline", size)) => {
                let bytes = size.parse::<bytesize::ByteSize>().map_or(0, |size| size.as_u64());
                let is_allowed = (1..=MOST_CMDLINE).contains(&bytes);
                let given = text.to_owned();
                is_allowed.then_some(Self::LongCmdline(bytes)).ok_or(BehaviourError::Size { given })
            }
            Some(("flood", records)) => {
                let records = records.parse().unwrap_or(0);
                let is_allowed = (1..=MOST_RECORDS).contains(&records);
                let given = text.to_owned();
                is_allowed.then_some(Self::Flood(records)).ok_or(BehaviourError::Records { given })
            }
            _ => plain().ok_or_else(|| BehaviourError::Unknown { given: text.to_owned() }),
        }
    }
}

/// How a node's scans fill its list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Each scan lists exactly the offenders that run, with the scan's timestamp.
    #[default]
    Correct,
    /// As the real agent: each scan leaves at most one record, and the offenders take turns. A scan without an offender leaves
    /// the last record with its old timestamp. The first scan comes one interval after the start.
    Upstream,
}

impl fmt::Display for Mode {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Correct => "correct",
            Self::Upstream => "upstream",
        })
    }
}

impl FromStr for Mode {
    type Err = BehaviourError;

    fn from_str(text: &str) -> Result<Self, BehaviourError> {
        match text {
            "correct" => Ok(Self::Correct),
            "upstream" => Ok(Self::Upstream),
            _ => Err(BehaviourError::Mode { given: text.to_owned() }),
        }
    }
}

/// A behaviour for some nodes, written `BEHAVIOUR[:COUNT]`: `hang`, `reset:3`, `slow=5s:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How these nodes behave.
    pub(crate) behaviour: Behaviour,
    /// How many nodes.
    pub count: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}", self.behaviour, self.count)
    }
}

impl FromStr for Fault {
    type Err = BehaviourError;

    fn from_str(text: &str) -> Result<Self, BehaviourError> {
        let Some((behaviour, count)) = text.rsplit_once(':') else {
            return Ok(Self { behaviour: text.parse()?, count: 1 });
        };
        let behaviour = behaviour.parse()?;
        match count.parse() {
            Ok(count) if count > 0 => Ok(Self { behaviour, count }),
            _ => Err(BehaviourError::Count { given: text.to_owned() }),
        }
    }
}

/// The fleet has fewer nodes than the faults need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the faults need {wanted} nodes, the fleet has {nodes}")]
pub struct TooManyFaults {
    /// Sum of the counts.
    pub(crate) wanted: usize,
    /// Size of the fleet.
    pub(crate) nodes: usize,
}

/// Gives the faults to the last of `nodes` nodes, in order: of ten nodes, `hang` and `reset:2` make node 7 hang, and
/// nodes 8 and 9 reset.
pub fn spread_faults(faults: &[Fault], nodes: usize) -> Result<Vec<(usize, Behaviour)>, TooManyFaults> {
    let wanted = faults.iter().fold(0_usize, |sum, fault| sum.saturating_add(fault.count));
    let first = nodes.checked_sub(wanted).ok_or(TooManyFaults { wanted, nodes })?;
    Ok((first..)
        .zip(faults.iter().flat_map(|fault| std::iter::repeat_n(fault.behaviour, fault.count)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_reads_back_what_it_shows() {
        let with_argument = [
            ("slow=5s", Behaviour::Slow(Duration::from_secs(5))),
            ("drip=1m30s", Behaviour::Drip(Duration::from_secs(90))),
            ("skewed=-1h", Behaviour::Skewed(-3600)),
            ("skewed=2s", Behaviour::Skewed(2)),
            ("long-cmdline=24MiB", Behaviour::LongCmdline(24 << 20)),
            ("long-cmdline=700KiB", Behaviour::LongCmdline(700 << 10)),
            ("long-cmdline=1GiB", Behaviour::LongCmdline(1 << 30)),
            ("long-cmdline=1025B", Behaviour::LongCmdline(1025)),
            ("flood=3000", Behaviour::Flood(3000)),
        ];
        for (text, behaviour) in PLAIN.into_iter().chain(with_argument) {
            assert_eq!(text.parse(), Ok(behaviour));
            assert_eq!(behaviour.to_string(), text);
        }
        assert_eq!("skewed=-3600s".parse(), Ok(Behaviour::Skewed(-3600)));
        assert_eq!("skewed=+1m".parse(), Ok(Behaviour::Skewed(60)));
    }

    #[test]
    fn an_error_names_the_valid_behaviours() {
        let error = |text: &str| text.parse::<Behaviour>().unwrap_err().to_string();
        for text in ["", "hung", "hang=1s", "slow", "Hang"] {
            let message = error(text);
            assert!(
                message.starts_with(&format!("invalid behaviour `{text}`: expected one of healthy, hang,")),
                "{message}"
            );
        }
        assert!(error("slow=soon").contains("such as `500ms`"));
        for size in ["", "0", "large", "-1MiB", "1025MiB"] {
            let text = format!("long-cmdline={size}");
            let expected = "expected 1B to 1GiB, such as `24MiB`";
            assert_eq!(error(&text), format!("invalid size `{text}`: {expected}"));
        }
        for records in ["", "0", "many", "1000001"] {
            let text = format!("flood={records}");
            let expected = "expected 1 to 1000000";
            assert_eq!(error(&text), format!("invalid number of records `{text}`: {expected}"));
        }
        assert_eq!(
            "best".parse::<Mode>().unwrap_err().to_string(),
            "invalid mode `best`: expected one of correct, upstream"
        );
    }

    #[test]
    fn faults_go_to_the_last_nodes_in_order() {
        let faults = ["hang", "reset:2", "slow=5s:1"].map(|text| text.parse::<Fault>().unwrap());
        let slow = Behaviour::Slow(Duration::from_secs(5));
        let spread = [(6, Behaviour::Hang), (7, Behaviour::Reset), (8, Behaviour::Reset), (9, slow)];
        assert_eq!(spread_faults(&faults, 10).unwrap(), spread);
        assert_eq!(
            spread_faults(&faults, 3).unwrap_err().to_string(),
            "the faults need 4 nodes, the fleet has 3"
        );
        for text in ["hang:", "hang:0", "hang:-1", "hang:two"] {
            assert!(matches!(text.parse::<Fault>(), Err(BehaviourError::Count { .. })), "{text}");
        }
        assert_eq!(faults[1].to_string(), "reset:2");
    }
}
