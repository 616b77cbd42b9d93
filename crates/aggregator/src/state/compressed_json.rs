//! Compresses documents in memory, because they are many and seldom read.
//!
//! A parsed incident takes six times the memory of its JSON text, and the text six times that of its compressed form.
//! Most of the text is common to all incidents.

use std::sync::{LazyLock, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zstd::bulk::{Compressor, Decompressor};
use zstd::dict::{DecoderDictionary, EncoderDictionary};
use zstd::zstd_safe::get_frame_content_size;

/// The text that incidents have in common, which takes almost no memory in each of them. It is only ever in memory,
/// so it may change with each version.
const DICTIONARY: &str = concat!(
    r#""Watched","Grace","Held","ReleaseHeld","Ended","brake":{"since":"","brake":"NewApps"},"releaseHeld":"#,
    r#""exempted":","inherited":[{"pod":"","process":""}],"cleared":{"at":"","by":"Clock","ended":true},"#,
    r#""releases":[{"process":"","rule":"","until":"","by":""}],"releaseDue":{"at":"","passed":false},"#,
    r#"Apps of more than  tenants were to be blocked within 10m (brake.max_new_tenants); process `"#,
    r#""ingresses":["ns-user/web"],"otherwise":[]},"origins":["Deployment/web"],"podUid":","#,
    r#"{"state":"Blocked","opened":"2026-01-01T00:00:00.000000000Z","since":"2026-01-01T00:00:00.000000000Z","#,
    r#""clock":"2026-01-01T00:00:00.000000000Z","written":"2026-01-01T00:00:00.000000000Z","#,
    r#""wallClock":{"believed":"2026-01-01T00:00:00.000000000Z"},"#,
    r#""reason":"process `xmrig` in Pod web-0 matches rule `^xmrig$` on node node-00001, as of "#,
    r#"2026-01-01T00:00:00.000+08:00","approved":false,"evidence":[{"pod":"web-0","process":"xmrig","node":"node-00001","#,
    r#""regex":"^xmrig$","type":"app","name":"web-0","firstSeen":"2026-01-01T00:00:00.000000000Z","#,
    r#""freshAt":"2026-01-01T00:00:00.000000000Z","timestamp":"2026-01-01T00:00:00.000+08:00","observations":1,"#,
    r#""scanIntervalSeconds":30}],"evidenceOmitted":0,"processes":["xmrig"],"exposure":{"services":["#,
    r#""web-0.ns-user.svc"],"ingresses":[]},"told":{"at":"2026-01-01T00:00:00.000000000Z","what":"Blocked","#,
    r#""deliveredAt":"2026-01-01T00:00:00.000000000Z","deliveredByClock":"2026-01-01T00:00:00.000000000Z"},"#,
    r#""due":{"at":"2026-01-01T00:00:00.000000000Z","passed":true,"#,
    r#""accusers":[{"node":"node-00001","rule":"^xmrig$"}]},"releases":[],"decisions":[{"at":"#,
    r#""2026-01-01T00:00:00.000000000Z","decision":"blocked","actor":"policy","reason":"process `xmrig` in Pod "#,
    r#"web-0 matches rule `^xmrig$` on node node-00001, as of 2026-01-01T00:00:00.000+08:00"}],"decided":1,"observed":0}"#,
);
/// The level of compression. With 3, a compressed incident of the benchmark is a seventh larger. With 19 it is a
/// thirtieth smaller, but compressing takes longer.
const COMPRESSION_LEVEL: i32 = 6;

static ENCODER: LazyLock<EncoderDictionary<'static>> =
    LazyLock::new(|| EncoderDictionary::copy(DICTIONARY.as_bytes(), COMPRESSION_LEVEL));
static DECODER: LazyLock<DecoderDictionary<'static>> =
    LazyLock::new(|| DecoderDictionary::copy(DICTIONARY.as_bytes()));
// Made at the first use and then used again, because making one costs more than using it.
static COMPRESSOR: Mutex<Option<Compressor<'static>>> = Mutex::new(None);
static DECOMPRESSOR: Mutex<Option<Decompressor<'static>>> = Mutex::new(None);

/// The compressed JSON of a value.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct CompressedJson(
    /// A frame of zstd that states the size of its content.
    Box<[u8]>,
);

impl CompressedJson {
    /// Fails if the value has no form in JSON. All types of ours have one.
    pub(super) fn of(value: &impl Serialize) -> Result<Self, String> {
        let text = serde_json::to_vec(value).map_err(|e| e.to_string())?;
        let mut compressor = COMPRESSOR.lock().unwrap_or_else(PoisonError::into_inner);
        let compressor = match &mut *compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::with_prepared_dictionary(&ENCODER).map_err(|e| e.to_string())?),
        };
        let compressed = compressor.compress(&text).map_err(|e| e.to_string())?;
        Ok(Self(compressed.into_boxed_slice()))
    }

    pub(super) fn decompress<T: DeserializeOwned>(&self) -> Result<T, String> {
        let broken = |e: std::io::Error| e.to_string();
        let len = get_frame_content_size(&self.0).ok().flatten().and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or("the frame is corrupt, or does not state the size of its content")?;
        let text = {
            let mut decompressor = DECOMPRESSOR.lock().unwrap_or_else(PoisonError::into_inner);
            let decompressor = match &mut *decompressor {
                Some(decompressor) => decompressor,
                none => none.insert(Decompressor::with_prepared_dictionary(&DECODER).map_err(broken)?),
            };
            decompressor.decompress(&self.0, len).map_err(broken)?
        };
        serde_json::from_slice(&text).map_err(|e| e.to_string())
    }
}

impl std::fmt::Debug for CompressedJson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes compressed", self.0.len())
    }
}

#[cfg(test)]
impl CompressedJson {
    /// Damages the content, as if a program had written over it.
    pub(super) fn spoil(&mut self) {
        self.0 = Box::default();
    }
}

#[cfg(test)]
mod tests {
    use procscan_core::state::IncidentStatus;
    use serde_json::{Value, json};

    use super::*;

    fn status(n: usize) -> IncidentStatus {
        let at = format!("2026-11-27T08:00:{:02}.{n:09}Z", n % 60);
        let reason = format!("process `xmrig` in Pod web-{n}-0 matches rule `^xmrig$` on node node-{n:05}");
        serde_json::from_value(json!({
            "state": "Blocked", "opened": at, "since": at, "reason": reason, "processes": ["xmrig"],
            "evidence": [{
                "pod": format!("web-{n}-0"), "process": "xmrig", "node": format!("node-{n:05}"),
                "regex": "^xmrig$", "type": "app", "name": format!("web-{n}"), "firstSeen": at,
                "freshAt": at, "timestamp": at, "observations": n,
            }],
            "told": {"at": at, "what": "Blocked", "deliveredAt": at},
            "due": {"at": at, "passed": true, "accusers": [{"node": format!("node-{n:05}"), "rule": "^xmrig$"}]},
            "decisions": [{"at": at, "decision": "blocked", "actor": "policy", "reason": reason}],
            "decided": 1,
        }))
        .unwrap()
    }

    #[test]
    fn a_value_is_the_same_after_decompression_and_takes_a_fraction_of_its_text() {
        let (mut compressed, mut plain) = (0, 0);
        for n in 0..100 {
            let status = status(n);
            let small = CompressedJson::of(&status).unwrap();
            assert_eq!(small.decompress::<IncidentStatus>().unwrap(), status);
            compressed += small.0.len();
            plain += serde_json::to_vec(&status).unwrap().len();
        }
        assert!(compressed * 4 < plain, "{compressed} of {plain} bytes");
    }

    #[test]
    fn any_value_can_be_compressed() {
        let noise: String = (0..100_000_u64).map(|n| char::from(b'!' + (n * n / 7 % 90) as u8)).collect();
        for odd in [json!(null), json!(""), json!(noise), json!({"日本": [1, 2, {}]})] {
            assert_eq!(CompressedJson::of(&odd).unwrap().decompress::<Value>().unwrap(), odd);
        }
    }

    #[test]
    fn a_damaged_frame_is_an_error() {
        let mut compressed = CompressedJson::of(&status(1)).unwrap();
        compressed.0.iter_mut().for_each(|byte| *byte = !*byte);
        assert!(compressed.decompress::<IncidentStatus>().is_err());
    }
}
