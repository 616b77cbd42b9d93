//! Bodies that are too large for memory: each is made piece by piece while it is read, and all nodes share the pieces that
//! repeat.

use std::{
    borrow::Cow,
    io::Write,
    iter::{once, repeat, repeat_n},
    sync::LazyLock,
};

use flate2::{Compress, Compression, Crc, FlushCompress, write::GzEncoder};

use super::{
    http::{Head, Pieces},
    node::offender,
};
use crate::record::{Record, encode};

const CHUNKED: &str = "Transfer-Encoding: chunked";
/// The end of a chunked body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// A placeholder in a body. No record has this character.
const PLACE: &str = "\u{e000}";

/// The bombs' spaces come in this many blocks of [`BLOCK`].
const BLOCKS: usize = 1024;
const BLOCK: usize = 1024 * 1024;

/// How many characters of a long command line are in one piece, and how many bytes the agent writes for each.
const ESCAPES: usize = 8192;
const ESCAPE: &str = "\\u003c";
/// The length of one chunk with its extension and its one byte.
const EXTENDED_CHUNK: usize = 16 * 1024;

/// How many empty gzip members are in one piece, and how many pieces follow the list.
const MEMBERS: usize = 4000;
const MEMBER_PIECES: usize = 500;

/// How many ordinary records of a flood are in one piece.
const FLOOD_PIECE: usize = 64;

/// A JSON array of records that never ends, as fast as the reader takes it.
pub(super) fn endless(head: &Head) -> Pieces {
    static CHUNK: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let records = vec![offender(0, 0, 0, 1); 128];
        chunk(&[elements(&records).as_slice(), b","].concat())
    });
    let block: &'static [u8] = &CHUNK;
    started(head.unsized_json(CHUNKED, &chunk(b"[")), repeat(block))
}

/// `list`, and then a valid body of spaces in chunks of one byte, without end.
pub(super) fn chunk_extensions(head: &Head, list: &[Record]) -> Pieces {
    static CHUNKS: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let (before, after) = ("1;x=", "\r\n \r\n");
        let extension = "x".repeat(EXTENDED_CHUNK - before.len() - after.len());
        [before, &extension, after].concat().repeat(4).into_bytes()
    });
    let block: &'static [u8] = &CHUNKS;
    let start = [b"[".as_slice(), &elements(list), b" "].concat();
    started(head.unsized_json(CHUNKED, &chunk(&start)), repeat(block))
}

/// `list` as one gzip member, and then empty members of 20 bytes each.
pub(super) fn gzip_members(head: &Head, list: &[Record]) -> Pieces {
    static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| gzip(b"").repeat(MEMBERS));
    let block: &'static [u8] = &EMPTY;
    let start = gzip(&encode(list));
    let length = start.len() + block.len() * MEMBER_PIECES;
    let framing = format!("Content-Encoding: gzip\r\nContent-Length: {length}");
    started(head.unsized_json(&framing, &start), repeat_n(block, MEMBER_PIECES))
}

/// `list` with a record of `neighbour` in its middle, whose command line takes at least `bytes` bytes.
pub(super) fn long_cmdline(head: &Head, mut list: Vec<Record>, neighbour: Record, bytes: u64) -> Pieces {
    static CHUNK: LazyLock<Vec<u8>> = LazyLock::new(|| chunk(ESCAPE.repeat(ESCAPES).as_bytes()));
    let block: &'static [u8] = &CHUNK;
    let pieces = bytes.div_ceil((ESCAPE.len() * ESCAPES) as u64);
    let cmdline = format!("{}{PLACE}", neighbour.cmdline);
    list.insert(list.len() / 2, Record { cmdline, ..neighbour });
    let body = String::from_utf8_lossy(&encode(&list)).into_owned();
    let (before, after) = body.split_once(PLACE).unwrap_or((&body, ""));
    let start = head.unsized_json(CHUNKED, &chunk(before.as_bytes()));
    let end = [chunk(after.as_bytes()).as_slice(), LAST_CHUNK].concat();
    let blocks = (0..pieces).map(move |_| block);
    Box::new(started(start, blocks).chain(once(Cow::Owned(end))))
}

/// `list` with `records` records of `neighbour` in its middle: one Pod, each process with another name, and a command line
/// of at least `cmdline` bytes.
pub(super) fn flood(head: &Head, list: &[Record], neighbour: Record, records: u32, cmdline: usize) -> Pieces {
    let (before, after) = list.split_at(list.len() / 2);
    let filler = "x".repeat(cmdline.saturating_sub(neighbour.cmdline.len()));
    let process = move |number: u32| Record {
        process: format!("xmrig-{number}"),
        cmdline: format!("{}{filler}", neighbour.cmdline),
        ..neighbour.clone()
    };
    // The last record is joined with the records of other tenants, so that each comma has a record after it.
    let in_pieces = records.saturating_sub(1);
    let ending = [&[process(in_pieces)], after].concat();
    let ending = [elements(&ending).as_slice(), b"]\n"].concat();
    let end = [chunk(&ending).as_slice(), LAST_CHUNK].concat();
    let mut start = b"[".to_vec();
    for record in before {
        start.extend_from_slice(&elements(std::slice::from_ref(record)));
        start.push(b',');
    }
    let start = head.unsized_json(CHUNKED, &chunk(&start));
    let step = if cmdline > 0 { 1 } else { FLOOD_PIECE };
    let pieces = (0..in_pieces).step_by(step).map(move |first| {
        let until = in_pieces.min(first.saturating_add(u32::try_from(step).unwrap_or(1)));
        let records: Vec<Record> = (first..until).map(&process).collect();
        Cow::Owned(chunk(&[elements(&records).as_slice(), b","].concat()))
    });
    Box::new(once(Cow::Owned(start)).chain(pieces).chain(once(Cow::Owned(end))))
}

/// `[`, a gigabyte of spaces, `]`: valid JSON, so that only a limit on decompressed bytes can refuse it.
pub(super) fn gzip_bomb(head: &Head) -> Pieces {
    /// One deflate block of spaces that ends on a byte and refers to nothing before it, so that it can be repeated.
    static SPACES: LazyLock<(Vec<u8>, Crc)> = LazyLock::new(|| {
        let spaces = vec![b' '; BLOCK];
        let mut block = Vec::with_capacity(BLOCK / 256);
        let done =
            Compress::new(Compression::best(), false).compress_vec(&spaces, &mut block, FlushCompress::Full);
        debug_assert!(done.is_ok(), "memory can be compressed");
        let mut crc = Crc::new();
        crc.update(&spaces);
        (block, crc)
    });
    let (block, spaces) = &*SPACES;
    let mut crc = Crc::new();
    crc.update(b"[");
    for _ in 0..BLOCKS {
        crc.combine(spaces);
    }
    crc.update(b"]");

    // The gzip header, and both brackets as stored blocks of one byte.
    let start = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\0\x01\0\xfe\xff[";
    let mut ending = b"\x01\x01\0\xfe\xff]".to_vec();
    ending.extend_from_slice(&crc.sum().to_le_bytes());
    ending.extend_from_slice(&crc.amount().to_le_bytes());
    bomb(head, "gzip", start, block, ending)
}

/// The same gigabyte of spaces in one zstd frame: four bytes for every 128 KiB.
pub(super) fn zstd_bomb(head: &Head) -> Pieces {
    /// A MiB of spaces: 8 blocks that each stand for 128 KiB of this byte (RFC 8878, section 3.1.1.2).
    static SPACES: LazyLock<Vec<u8>> = LazyLock::new(|| b"\x02\x00\x10 ".repeat(8));
    // The magic number, no checksum and no length, a window of 128 KiB; then both brackets as raw blocks of one byte.
    let start = b"\x28\xb5\x2f\xfd\x00\x38\x08\x00\x00[";
    bomb(head, "zstd", start, &SPACES, b"\x09\x00\x00]".to_vec())
}

fn bomb(head: &Head, encoding: &str, start: &[u8], block: &'static [u8], ending: Vec<u8>) -> Pieces {
    let length = start.len() + block.len() * BLOCKS + ending.len();
    let framing = format!("Content-Encoding: {encoding}\r\nContent-Length: {length}");
    let blocks = started(head.unsized_json(&framing, start), repeat_n(block, BLOCKS));
    Box::new(blocks.chain(once(Cow::Owned(ending))))
}

/// One gzip member.
pub(super) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(plain).and_then(|()| encoder.finish());
    debug_assert!(written.is_ok(), "memory can be compressed");
    written.unwrap_or_default()
}

/// `list` as an agent encodes it, with half of a surrogate pair at the end of each command line.
pub(super) fn with_lone_surrogates(mut list: Vec<Record>) -> Vec<u8> {
    for record in &mut list {
        record.cmdline.push_str(PLACE);
    }
    String::from_utf8_lossy(&encode(&list)).replace(PLACE, "\\udcff").into_bytes()
}

fn started(start: Vec<u8>, blocks: impl Iterator<Item = &'static [u8]> + Send + 'static) -> Pieces {
    Box::new(once(Cow::Owned(start)).chain(blocks.map(Cow::Borrowed)))
}

/// The elements of an array without its brackets.
fn elements(records: &[Record]) -> Vec<u8> {
    let array = encode(records);
    let inside = array.trim_ascii_end().strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    inside.unwrap_or_default().to_vec()
}

/// One chunk of a chunked body.
fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}
