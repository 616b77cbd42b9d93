//! The wanted parts of a text do not depend on the pieces in which it arrives.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

static LIST: Keep = Keep::Fields(&[
    ("kind", Keep::All),
    ("items", Keep::Items(&Keep::Fields(&[("a", Keep::All), ("b", Keep::Fields(&[("c", Keep::All)]))]))),
]);

fn trim(text: &[u8], piece: usize) -> Vec<u8> {
    let mut trim = Trim::new(&LIST);
    text.chunks(piece.max(1)).for_each(|piece| trim.take_in(piece));
    trim.into_wanted()
}

/// The parts of `value` that trimming by `keep` has to leave.
fn wanted(value: &Value, keep: &Keep) -> Value {
    match (value, keep) {
        (Value::Object(object), Keep::Fields(fields)) => {
            let left = object.iter().filter_map(|(name, value)| {
                let (_, keep) = fields.iter().find(|(field, _)| field == name)?;
                Some((name.clone(), wanted(value, keep)))
            });
            Value::Object(left.collect::<Map<_, _>>())
        }
        (Value::Array(items), Keep::Items(keep)) => items.iter().map(|item| wanted(item, keep)).collect(),
        _ => value.clone(),
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        "[\"\\\\{}\\[\\],:]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 5, |inner| {
        let name = prop_oneof!["[abc]", Just("items".to_owned()), Just("kind".to_owned()), ".{0,3}"];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn the_wanted_parts_stay_and_nothing_else(items in value(), other in value(), piece in 1..9_usize, pretty in any::<bool>()) {
        let whole = json!({"items": items, "other": other, "kind": "x"});
        let text = if pretty { serde_json::to_vec_pretty(&whole) } else { serde_json::to_vec(&whole) }.unwrap();
        let trimmed: Value = serde_json::from_slice(&trim(&text, piece)).unwrap();
        prop_assert_eq!(trimmed, wanted(&whole, &LIST));
    }

    #[test]
    fn a_text_that_breaks_off_is_never_taken_for_a_whole_one(items in value(), piece in 1..9_usize, at in 0.0..1.0_f64) {
        let text = serde_json::to_vec(&json!({"items": [items], "other": 1})).unwrap();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (text.len() as f64 * at) as usize;
        prop_assert!(serde_json::from_slice::<Value>(&trim(&text[..at], piece)).is_err());
    }

    #[test]
    fn any_bytes_are_trimmed_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..60), piece in 1..9_usize) {
        trim(&text, piece);
    }
}

#[test]
fn unwanted_parts_are_never_held() {
    let mut trim = Trim::new(&LIST);
    trim.take_in(br#"{"items": [{"z": ""#);
    for _ in 0..1000 {
        trim.take_in(&[b'x'; 1000]);
    }
    assert!(trim.held() < 20 && trim.wanted.capacity() < 100);
    trim.take_in(br#"", "a": [1, "\"}"]}, 2 ]}"#);
    assert_eq!(trim.into_wanted(), br#"{"items":[{"a":[1, "\"}"]},2]}"#);
}

static EVENT: Keep = Keep::Fields(&[
    ("kind", Keep::All),
    (
        "items",
        Keep::Print(&Keep::Items(&Keep::Fields(&[
            ("a", Keep::All),
            ("b", Keep::Fields(&[("c", Keep::All)])),
        ]))),
    ),
    ("more", Keep::Print(&Keep::All)),
]);

fn printed(text: &[u8], piece: usize, secret: &RandomState) -> (Vec<u8>, u64) {
    let mut trim = Trim::printing(&EVENT, secret);
    text.chunks(piece.max(1)).for_each(|piece| trim.take_in(piece));
    let print = trim.print();
    (trim.into_wanted(), print)
}

proptest! {
    #[test]
    fn fingerprints_differ_exactly_if_their_parts_differ(
        one in value(), other in value(), dropped in value(), piece in 1..9_usize
    ) {
        let secret = RandomState::new();
        let text = |items: &Value, other: &Value| serde_json::to_vec(&json!({"items": items, "other": other, "kind": "x"})).unwrap();
        let (trimmed, print) = printed(&text(&one, &dropped), piece, &secret);
        prop_assert_eq!(serde_json::from_slice::<Value>(&trimmed).unwrap(), json!({"items": 0, "kind": "x"}));
        prop_assert_eq!(print, printed(&text(&one, &other), 1000, &secret).1);
        let wanted = |value: &Value| wanted(&json!({"items": value}), &LIST);
        prop_assert_eq!(print == printed(&text(&other, &dropped), piece, &secret).1, wanted(&one) == wanted(&other));
    }

    #[test]
    fn each_item_of_an_answer_has_the_size_of_its_own_text(items in proptest::collection::vec(value(), 0..6), piece in 1..9_usize) {
        let whole = json!({"items": items, "kind": "x"});
        let mut trim = Trim::new(&LIST);
        serde_json::to_vec(&whole).unwrap().chunks(piece).for_each(|piece| trim.take_in(piece));
        let sizes: Vec<usize> = trim.items().iter().map(|size| size.read).collect();
        let texts: Vec<usize> = items.iter().map(|item| item.to_string().len()).collect();
        prop_assert_eq!(sizes, texts);
        let wanted: usize = trim.items().iter().map(|size| size.wanted).sum();
        prop_assert!(wanted <= trim.held() && trim.held() - wanted < 30);
    }
}

#[test]
fn parts_that_are_only_compared_are_never_held() {
    let secret = RandomState::new();
    let print = |field: &str, last: u8| {
        let mut trim = Trim::printing(&EVENT, &secret);
        trim.take_in(format!(r#"{{"kind": "x", "{field}": [{{"a": ""#).as_bytes());
        for _ in 0..1000 {
            trim.take_in(&[b'x'; 1000]);
        }
        trim.take_in(&[last]);
        trim.take_in(br#""}]}"#);
        assert!(trim.held() < 40 && trim.wanted.capacity() < 100);
        trim.print()
    };
    assert_eq!(print("items", b'a'), print("items", b'a'));
    assert_ne!(print("items", b'a'), print("items", b'b'));
    assert_ne!(print("more", b'a'), print("items", b'a'));
}
