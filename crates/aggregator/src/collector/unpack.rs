//! Decompresses an answer as it arrives, a bounded step at a time.
//!
//! A few bytes can decompress to gigabytes, and a body of empty members or blocks takes much time for nothing. So each
//! step returns a limited number of bytes, and the number of members is limited. A body that is longer than its text is
//! refused.

use std::io::{self, Write};

use flate2::write::GzDecoder;
use procscan_core::report::{Failure, FailureReason};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation, Status};

/// How many bytes are decompressed at a time; up to twice as many where a member ends.
pub(super) const BYTES_PER_STEP: usize = 32 << 10;
/// How much longer than its text so far a body may be. Text that compresses badly is stored, which costs a few bytes for each
/// 64 KiB. A zstd block of up to 128 KiB gives no text before all of it has arrived.
const SLACK: usize = 256 << 10;
/// The most gzip members or zstd frames of one body. A server writes one.
const MAX_PARTS: usize = 256;
/// The largest window of a zstd frame, as a power of two: the decoder allocates the window that the frame asks for.
const ZSTD_WINDOW_LOG: u32 = 20;
/// The memory that decompressing gzip takes, in bytes: flate2's buffer of 32 KiB, a window of 32 KiB, tables, and a member's header.
/// Of a header flate2 keeps three fields of up to 64 KiB.
const GZIP_STATE: usize = (96 + 3 * 64) << 10;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// The coding with this name: those that are asked for, and other names of theirs (RFC 9110, section 8.4.1.3). An empty name
    /// means no coding.
    pub(super) fn named(name: &str) -> Option<Self> {
        const NAMES: [(&str, Encoding); 5] = [
            ("", Encoding::Identity),
            ("identity", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("zstd", Encoding::Zstd),
        ];
        let known = NAMES.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|(_, encoding)| encoding)
    }

    /// The memory that decompressing takes, in bytes.
    pub(super) fn state(self) -> usize {
        match self {
            Self::Identity => 0,
            Self::Gzip => GZIP_STATE,
            Self::Zstd => 1 << ZSTD_WINDOW_LOG,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Decompresses one body.
pub(super) struct Unpacker {
    encoding: Encoding,
    part: Part,
    /// How many members or frames have begun.
    parts: usize,
    /// Bytes of the body, and bytes that it was decompressed to.
    taken: usize,
    given: usize,
}

/// The part of the body that is being read.
enum Part {
    Plain,
    Gzip(Box<GzDecoder<Vec<u8>>>),
    /// Behind a gzip member: another, or zeros up to the end.
    BehindGzip,
    /// Zeros behind the last gzip member, as in files that are padded to blocks.
    Zeros,
    Zstd {
        decoder: ZstdDecoder<'static>,
        is_between_frames: bool,
    },
}

impl Unpacker {
    pub(super) fn new(encoding: Encoding) -> Result<Self, Failure> {
        let part = match encoding {
            Encoding::Identity => Part::Plain,
            Encoding::Gzip => Part::Gzip(member()),
            Encoding::Zstd => {
                let broken = |error: io::Error| failure(encoding, &error);
                let mut decoder = ZstdDecoder::new().map_err(broken)?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(broken)?;
                Part::Zstd { decoder, is_between_frames: true }
            }
        };
        let parts = usize::from(encoding == Encoding::Gzip);
        Ok(Self { encoding, part, parts, taken: 0, given: 0 })
    }

    /// Takes some of `input`, and appends at most twice [`BYTES_PER_STEP`] bytes, perhaps none, to `output`, also before it fails.
    /// Returns how many bytes of `input` it has taken. `input` must not be empty, and is to be passed on until all of it is taken.
    pub(super) fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Failure> {
        let before = output.len();
        let step = self.step_or_error(input, output).and_then(|taken| {
            self.given += output.len() - before;
            // Zeros behind the end cost nothing.
            self.taken += if matches!(self.part, Part::Zeros) { 0 } else { taken };
            if self.taken > self.given.saturating_add(SLACK) {
                return Err(io::Error::other("it is longer than what it decompresses to"));
            }
            Ok(taken)
        });
        step.map_err(|error| failure(self.encoding, &error))
    }

    fn step_or_error(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<usize> {
        match &mut self.part {
            Part::Plain => {
                let piece = input.get(..BYTES_PER_STEP).unwrap_or(input);
                output.extend_from_slice(piece);
                Ok(piece.len())
            }
            Part::Gzip(decoder) => {
                let taken = decoder.write(input);
                if taken.is_err() {
                    // A call that fails leaves its output in the decoder. Flushing hands it out, and fails again.
                    let _ = decoder.flush();
                }
                output.append(decoder.get_mut());
                let taken = taken?;
                if taken == 0 {
                    // The member ends before `input`.
                    decoder.try_finish()?;
                    output.append(decoder.get_mut());
                    self.part = Part::BehindGzip;
                }
                Ok(taken)
            }
            Part::BehindGzip if input.first() == Some(&0) => {
                self.part = Part::Zeros;
                Ok(1)
            }
            Part::BehindGzip => {
                self.count_part()?;
                self.part = Part::Gzip(member());
                Ok(0)
            }
            Part::Zeros if input.iter().all(|byte| *byte == 0) => Ok(input.len()),
            Part::Zeros => Err(io::Error::other("something follows the zeros behind its end")),
            Part::Zstd { decoder, is_between_frames } => {
                let before = output.len();
                output.resize(before + BYTES_PER_STEP, 0);
                let room = output.get_mut(before..).unwrap_or_default();
                let status = decoder.run_on_buffers(input, room);
                output.truncate(before + status.as_ref().map_or(0, |status| status.bytes_written));
                let Status { remaining, bytes_read, .. } = status?;
                let has_begun = std::mem::replace(is_between_frames, remaining == 0);
                if has_begun && bytes_read > 0 {
                    self.count_part()?;
                }
                Ok(bytes_read)
            }
        }
    }

    fn count_part(&mut self) -> io::Result<()> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(io::Error::other(format!("it consists of more than {MAX_PARTS} parts")));
        }
        Ok(())
    }

    /// The body ends here. Appends the rest to `output`, and returns whether the body is whole.
    pub(super) fn finish(&mut self, output: &mut Vec<u8>) -> Result<(), Failure> {
        let end = match &mut self.part {
            Part::Plain | Part::BehindGzip | Part::Zeros | Part::Zstd { is_between_frames: true, .. } => {
                Ok(())
            }
            Part::Gzip(decoder) => {
                let end = decoder.try_finish();
                output.append(decoder.get_mut());
                end
            }
            Part::Zstd { decoder, .. } => {
                // Decompressed bytes for which there was no room before.
                let mut room = vec![0; 1 << ZSTD_WINDOW_LOG];
                if let Ok(Status { bytes_written, .. }) = decoder.run_on_buffers(&[], &mut room) {
                    output.extend_from_slice(room.get(..bytes_written).unwrap_or_default());
                }
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete frame"))
            }
        };
        end.map_err(|error| failure(self.encoding, &error))
    }
}

fn member() -> Box<GzDecoder<Vec<u8>>> {
    Box::new(GzDecoder::new(Vec::new()))
}

fn failure(encoding: Encoding, error: &io::Error) -> Failure {
    let detail = format!("the {} body does not decode: {error}", encoding.name());
    Failure { reason: FailureReason::Encoding, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Decompresses a body that arrives in pieces of `size` bytes.
    fn unpack(encoding: Encoding, body: &[u8], size: usize) -> Result<Vec<u8>, (Vec<u8>, Failure)> {
        let mut unpacker = Unpacker::new(encoding).unwrap();
        let mut output = Vec::new();
        for mut piece in body.chunks(size) {
            while !piece.is_empty() {
                let before = output.len();
                match unpacker.step(piece, &mut output) {
                    Ok(taken) => piece = &piece[taken..],
                    Err(failure) => return Err((output, failure)),
                }
                assert!(output.len() - before <= 2 * BYTES_PER_STEP, "{}", output.len() - before);
            }
        }
        match unpacker.finish(&mut output) {
            Ok(()) => Ok(output),
            Err(failure) => Err((output, failure)),
        }
    }

    const PIECES: [usize; 4] = [1, 7, 4096, 1 << 20];

    #[test]
    fn a_body_of_several_parts_is_one_body_however_it_arrives() {
        let large: Vec<u8> = (0..200_000_u32).flat_map(|n| (n % 251).to_le_bytes()).collect();
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let bodies = [
            (Encoding::Identity, large.clone(), large.clone()),
            (Encoding::Gzip, gzip(&large), large.clone()),
            (Encoding::Gzip, [gzip(b"one, "), gzip(b""), gzip(b"two")].concat(), b"one, two".to_vec()),
            (Encoding::Gzip, [gzip(b"padded"), vec![0; 1000]].concat(), b"padded".to_vec()),
            (Encoding::Zstd, zstd(&large), large.clone()),
            (Encoding::Zstd, [zstd(b"one, "), zstd(b""), zstd(b"two")].concat(), b"one, two".to_vec()),
        ];
        for (encoding, body, expected) in bodies {
            for size in PIECES {
                let unpacked = unpack(encoding, &body, size).unwrap();
                assert!(unpacked == expected, "{encoding:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_body_that_breaks_off_gives_the_text_before() {
        let text: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        for (encoding, body) in
            [(Encoding::Gzip, gzip(&text)), (Encoding::Zstd, zstd::encode_all(&*text, 1).unwrap())]
        {
            for size in PIECES {
                let (part, failure) = unpack(encoding, &body[..body.len() - 1], size).unwrap_err();
                assert_eq!(failure.reason, FailureReason::Encoding);
                assert!(text.starts_with(&part) && part.len() > text.len() / 2, "{}", part.len());
            }
        }
    }

    /// A call that reaches the corruption has decompressed the text before it, and may have more than one step of it.
    #[test]
    fn a_corrupt_body_gives_all_text_before_the_corruption_however_it_arrives() {
        const INVALID_BLOCKS: [u8; 64] = [7; 64];
        let numbers = (0..8000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_string());
        let long = numbers.collect::<Vec<_>>().join(";").into_bytes();
        assert!(long.len() > 2 * BYTES_PER_STEP);
        for text in [&long[..300], &long] {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.flush().unwrap();
            let corrupt = [encoder.get_ref().as_slice(), &INVALID_BLOCKS].concat();
            for size in PIECES {
                let (part, failure) = unpack(Encoding::Gzip, &corrupt, size).unwrap_err();
                assert!(part == text, "{} of {} bytes in pieces of {size}", part.len(), text.len());
                assert!(failure.detail.contains("corrupt"), "{failure:?}");
            }
        }
    }

    #[test]
    fn foreign_bytes_behind_a_body_are_an_error() {
        for (body, why) in [
            ([gzip(b"a"), b"something else".to_vec()].concat(), "header"),
            ([gzip(b"a"), vec![0; 5], gzip(b"b")].concat(), "zeros"),
            (gzip(b"").repeat(MAX_PARTS + 1), "256 parts"),
        ] {
            for size in PIECES {
                let (_, failure) = unpack(Encoding::Gzip, &body, size).unwrap_err();
                assert!(failure.detail.contains(why), "{failure:?}");
            }
        }
        let many = zstd::encode_all(&b""[..], 1).unwrap().repeat(MAX_PARTS + 1);
        for size in PIECES {
            let (_, failure) = unpack(Encoding::Zstd, &many, size).unwrap_err();
            assert!(failure.detail.contains("256 parts"), "{failure:?}");
        }
        for size in PIECES {
            assert!(unpack(Encoding::Gzip, &gzip(b"").repeat(MAX_PARTS), size).is_ok());
            let frames = zstd::encode_all(&b""[..], 1).unwrap().repeat(MAX_PARTS);
            assert!(unpack(Encoding::Zstd, &frames, size).is_ok());
        }
    }

    /// Flushes write blocks without any text, which cost time for nothing.
    #[test]
    fn a_body_that_is_longer_than_its_text_is_refused_and_one_that_compresses_badly_is_not() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        while encoder.get_ref().len() <= 2 * SLACK {
            encoder.write_all(b"a").unwrap();
            encoder.flush().unwrap();
        }
        let body = encoder.finish().unwrap();
        let (_, failure) = unpack(Encoding::Gzip, &body, 4096).unwrap_err();
        assert!(failure.detail.contains("longer than what it decompresses to"), "{failure:?}");
        let mut seed = 1_u64;
        let noise: Vec<u8> = (0..1 << 20)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        assert!(unpack(Encoding::Gzip, &gzip(&noise), 4096).unwrap() == noise);
        assert!(unpack(Encoding::Zstd, &zstd::encode_all(&*noise, 1).unwrap(), 4096).unwrap() == noise);
    }

    #[test]
    fn a_window_that_is_too_large_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&vec![7; 1 << 16]).unwrap();
        let (_, failure) = unpack(Encoding::Zstd, &encoder.finish().unwrap(), 4096).unwrap_err();
        assert_eq!(failure.reason, FailureReason::Encoding);
    }
}
