//! Compressed texts come back whole, in pieces that do not tell how well they were compressed.

use std::io::Write;

use flate2::{Compression, write};
use proptest::prelude::*;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective};

use super::*;
use crate::scrub::{
    MaskStream,
    oracle::{masks, oracle},
};

/// Another way to write the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Gzip,
    Zlib,
    Raw,
    Brotli,
    Zstd,
}

const WRITERS: [Writer; 5] =
    [Writer::Gzip, Writer::Zlib, Writer::Raw, Writer::Brotli, Writer::Zstd];

impl Writer {
    fn coding(self) -> Coding {
        match self {
            Self::Gzip => Coding::Gzip,
            Self::Zlib | Self::Raw => Coding::Deflate,
            Self::Brotli => Coding::Brotli,
            Self::Zstd => Coding::Zstd,
        }
    }

    /// Returns one stream of these messages, flushed behind each except the last, and the places
    /// behind the flushes.
    fn flushed(self, messages: &[&[u8]], level: u32) -> (Vec<u8>, Vec<usize>) {
        let level_of = Compression::new(level);
        match self {
            Self::Gzip => written(write::GzEncoder::new(Sink::default(), level_of), messages),
            Self::Zlib => written(write::ZlibEncoder::new(Sink::default(), level_of), messages),
            Self::Raw => written(write::DeflateEncoder::new(Sink::default(), level_of), messages),
            Self::Brotli => {
                let sink = Sink::default();
                let all = sink.clone();
                let (_, places) =
                    written(::brotli::CompressorWriter::new(sink, 4096, level, 18), messages);
                (all.taken(), places)
            }
            Self::Zstd => zstd(messages, level, 17),
        }
    }

    fn whole(self, text: &[u8], level: u32) -> Vec<u8> {
        self.flushed(&[text], level).0
    }
}

/// A sink whose bytes stay when their writer is dropped.
#[derive(Default, Clone)]
struct Sink(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

impl Sink {
    fn taken(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

trait Inner {
    fn sink(&self) -> Sink;
}

impl Inner for write::GzEncoder<Sink> {
    fn sink(&self) -> Sink {
        self.get_ref().clone()
    }
}

impl Inner for write::ZlibEncoder<Sink> {
    fn sink(&self) -> Sink {
        self.get_ref().clone()
    }
}

impl Inner for write::DeflateEncoder<Sink> {
    fn sink(&self) -> Sink {
        self.get_ref().clone()
    }
}

impl Inner for ::brotli::CompressorWriter<Sink> {
    fn sink(&self) -> Sink {
        self.get_ref().clone()
    }
}

fn written<W: Write + Inner>(mut writer: W, messages: &[&[u8]]) -> (Vec<u8>, Vec<usize>) {
    let (sink, mut places) = (writer.sink(), vec![]);
    for (number, message) in messages.iter().enumerate() {
        writer.write_all(message).unwrap();
        if number + 1 < messages.len() {
            writer.flush().unwrap();
            places.push(sink.0.borrow().len());
        }
    }
    drop(writer);
    (sink.taken(), places)
}

fn zstd(messages: &[&[u8]], level: u32, window: u32) -> (Vec<u8>, Vec<usize>) {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(level as i32)).unwrap();
    context.set_parameter(CParameter::WindowLog(window)).unwrap();
    context.set_parameter(CParameter::ChecksumFlag(true)).unwrap();
    let (mut out, mut places) = (vec![], vec![]);
    for (number, message) in messages.iter().enumerate() {
        let is_last = number + 1 == messages.len();
        let end =
            if is_last { ZSTD_EndDirective::ZSTD_e_end } else { ZSTD_EndDirective::ZSTD_e_flush };
        let mut input = InBuffer::around(message);
        loop {
            let mut room = vec![0; 1 << 16];
            let mut output = OutBuffer::around(&mut room[..]);
            let left = context.compress_stream2(&mut output, &mut input, end).unwrap();
            out.extend_from_slice(output.as_slice());
            if left == 0 {
                break;
            }
        }
        if !is_last {
            places.push(out.len());
        }
    }
    (out, places)
}

/// Decodes chunks and returns the pieces.
fn pieces(coding: Coding, chunks: &[&[u8]]) -> Result<Vec<Bytes>, Undecodable> {
    let (mut decoder, mut pieces) = (Decoder::new(coding), vec![]);
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        drain(&mut decoder, &mut pieces)?;
    }
    let rest = decoder.finish()?;
    pieces.extend((!rest.is_empty()).then_some(rest));
    Ok(pieces)
}

fn drain(decoder: &mut Decoder, pieces: &mut Vec<Bytes>) -> Result<(), Undecodable> {
    loop {
        match decoder.advance()? {
            DecoderProgress::Piece(piece) => pieces.push(piece),
            DecoderProgress::Busy => {}
            DecoderProgress::Hungry => return Ok(()),
        }
    }
}

fn text_of(coding: Coding, chunks: &[&[u8]]) -> Result<Vec<u8>, Undecodable> {
    pieces(coding, chunks).map(|pieces| pieces.concat())
}

fn sizes(pieces: &[Bytes]) -> Vec<usize> {
    pieces.iter().map(Bytes::len).collect()
}

const SECRET: &str = "sk-Proj-0123456789abcdefgh";

fn sample() -> Vec<u8> {
    format!("{{\"key\": \"{SECRET}\", \"again\": \"{SECRET}\", \"n\": [1, 2, 3, 22, 333]}}\n")
        .repeat(3)
        .into_bytes()
}

#[test]
fn a_text_comes_back_however_its_stream_is_split() {
    let text = sample();
    for writer in WRITERS {
        for level in [0, 1, 6] {
            let stream = writer.whole(&text, level);
            for at in 0..=stream.len() {
                let (one, two) = stream.split_at(at);
                let found = text_of(writer.coding(), &[one, two]);
                assert_eq!(found.as_ref(), Ok(&text), "{writer:?} {level} at {at}");
            }
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(text_of(writer.coding(), &bytes), Ok(text.clone()), "{writer:?}");
        }
    }
}

#[test]
fn a_stream_cut_short_or_continued_is_an_error() {
    let text = sample();
    for writer in WRITERS {
        let stream = writer.whole(&text, 6);
        for end in 1..stream.len() {
            let cut = text_of(writer.coding(), &[&stream[..end]]);
            assert!(cut.is_err(), "{writer:?} cut at {end}");
        }
        for garbage in [&b"\0"[..], b"\x1f", b"(", b"garbage", b"\r\n"] {
            let followed = [&stream, garbage].concat();
            assert!(text_of(writer.coding(), &[&followed]).is_err(), "{writer:?} {garbage:?}");
            let apart = text_of(writer.coding(), &[&stream, garbage]);
            assert!(apart.is_err(), "{writer:?} {garbage:?}, apart");
        }
        assert_eq!(text_of(writer.coding(), &[]), Ok(vec![]), "no body stays none");
    }
}

#[test]
fn damage_anywhere_in_a_summed_stream_is_an_error() {
    let text = sample();
    for writer in [Writer::Gzip, Writer::Zlib, Writer::Zstd] {
        let stream = writer.whole(&text, 6);
        for at in 0..stream.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 1 << (at % 8);
            if let Ok(found) = text_of(writer.coding(), &[&damaged]) {
                assert_eq!(found, text, "{writer:?} at {at}");
            }
        }
    }
}

#[test]
fn gzip_has_heads_with_everything_in_them_and_many_members() {
    let member = |text: &[u8]| {
        let builder = flate2::GzBuilder::new()
            .extra(*b"ab\x02\x00xy")
            .filename("name")
            .comment("comment")
            .mtime(7);
        let mut writer = builder.write(vec![], Compression::fast());
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    };
    let mut with_sum = member(b"one, ");
    with_sum[3] |= 2;
    let head = 10 + 2 + 6 + 5 + 8;
    let mut sum = flate2::Crc::new();
    sum.update(&with_sum[..head]);
    with_sum.splice(head..head, (sum.sum() as u16).to_le_bytes());
    let stream = [with_sum.clone(), member(b""), member(b"three")].concat();
    for at in 0..=stream.len() {
        let (one, two) = stream.split_at(at);
        assert_eq!(text_of(Coding::Gzip, &[one, two]), Ok(b"one, three".to_vec()), "at {at}");
    }
    with_sum[head] ^= 1;
    assert_eq!(text_of(Coding::Gzip, &[&with_sum]), Err(Undecodable::Malformed));
}

#[test]
fn frames_that_zstd_skips_are_skipped() {
    let frame = Writer::Zstd.whole(b"text", 3);
    let skipped = [&b"\x5a\x2a\x4d\x18\x03\0\0\0abc"[..], b"\x50\x2a\x4d\x18\0\0\0\0"].concat();
    let stream = [&frame[..], &skipped, &frame].concat();
    for at in 0..=stream.len() {
        let (one, two) = stream.split_at(at);
        assert_eq!(text_of(Coding::Zstd, &[one, two]), Ok(b"texttext".to_vec()), "at {at}");
    }
}

#[test]
fn what_was_flushed_is_there_at_once() {
    let messages = ["data: one\n\n", "data: two\n\n", ": comment\n\n", "data: three\n\n", "d\n\n"]
        .map(str::as_bytes);
    for writer in WRITERS {
        for level in [1, 5, 9] {
            let (stream, places) = writer.flushed(&messages, level);
            let (mut decoder, mut begin) = (Decoder::new(writer.coding()), 0);
            for (place, message) in places.iter().zip(messages) {
                decoder.push(Bytes::copy_from_slice(&stream[begin..*place]));
                let mut pieces = vec![];
                drain(&mut decoder, &mut pieces).unwrap();
                assert_eq!(pieces.concat(), message, "{writer:?} {level}");
                assert!(decoder.rests(), "{writer:?} {level}");
                begin = *place;
            }
        }
    }
}

/// Each cut costs a search of the bytes that are kept back, and a frame.
#[test]
fn flushes_at_every_byte_cut_a_text_that_often() {
    let text = vec![b'\n'; 4 * FREE_CUTS as usize];
    let messages: Vec<&[u8]> = text.chunks(1).collect();
    let (stream, _) = Writer::Zstd.flushed(&messages, 1);
    let pieces = pieces(Coding::Zstd, &[&stream]).unwrap();
    assert_eq!(pieces.concat(), text);
    let most = FREE_CUTS as usize + text.len() / TEXT_A_CUT as usize + 1;
    assert!((2..=most + 1).contains(&pieces.len()), "{} pieces", pieces.len());
}

#[test]
fn a_secret_is_masked_in_every_coding_at_every_split() {
    let text = sample();
    let (masks, expected) = (masks(&[SECRET]), oracle(&[SECRET], &text));
    for writer in WRITERS {
        let stream = writer.whole(&text, 6);
        for at in (0..=stream.len()).step_by(3) {
            let (one, two) = stream.split_at(at);
            let mut masking = MaskStream::new(masks.clone(), false);
            let mut out = vec![];
            for piece in pieces(writer.coding(), &[one, two]).unwrap() {
                out.extend(masking.push(piece));
            }
            out.extend(masking.finish());
            assert_eq!(out, expected, "{writer:?} at {at}");
        }
    }
}

#[test]
fn a_bomb_is_an_error_before_it_is_large() {
    let zeros = vec![0; 64 << 20];
    for writer in WRITERS {
        let stream = writer.whole(&zeros, 6);
        let (mut decoder, mut pieces) = (Decoder::new(writer.coding()), vec![]);
        decoder.push(stream.into());
        assert_eq!(drain(&mut decoder, &mut pieces), Err(Undecodable::Ratio), "{writer:?}");
        let given: usize = pieces.iter().map(Bytes::len).sum();
        assert!(given < 32 << 20, "{writer:?}: {given}");
        assert_eq!(decoder.advance(), Err(Undecodable::Ratio), "it stays one");
        assert_eq!(decoder.finish(), Err(Undecodable::Ratio), "it stays one");
    }
}

#[test]
fn a_window_beyond_the_bound_is_an_error_at_once() {
    let text = vec![b'x'; 1 << 16];
    let mut wide = ::brotli::CompressorWriter::new(vec![], 4096, 5, 24);
    wide.write_all(&text).unwrap();
    assert_eq!(text_of(Coding::Brotli, &[&wide.into_inner()]), Err(Undecodable::Window));
    let wide = |window| zstd(&[&text, b"more"], 3, window).0;
    assert_eq!(text_of(Coding::Zstd, &[&wide(24)]), Err(Undecodable::Window));
    assert!(text_of(Coding::Zstd, &[&wide(23)]).is_ok());
}

/// A text like those that agents read, in messages that are flushed.
fn flushed_text() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let word = prop_oneof![Just("abcdef".to_owned()), "[a-z0-9]{1,40}", "[a-c]{100,3000}"];
    let message = prop::collection::vec(word, 0..30).prop_map(|words| words.join(" ").into_bytes());
    prop::collection::vec(message, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn piece_sizes_follow_the_text_and_its_flushes(
        messages in flushed_text(),
        levels in (0u32..10, 0u32..10),
        cut in 1usize..3000,
    ) {
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        for writer in [Writer::Gzip, Writer::Zlib, Writer::Raw, Writer::Zstd] {
            let (one, _) = writer.flushed(&messages, levels.0);
            let (two, _) = writer.flushed(&messages, levels.1);
            let whole = pieces(writer.coding(), &[&one]).unwrap();
            prop_assert_eq!(whole.concat(), messages.concat());
            let chunks: Vec<&[u8]> = two.chunks(cut).collect();
            prop_assert_eq!(
                sizes(&whole), sizes(&pieces(writer.coding(), &chunks).unwrap()), "{:?}", writer
            );
        }
        // Brotli's flushes need not be marked; without them the pieces depend on the text alone.
        let text = messages.concat();
        let [one, two] = [levels.0, levels.1].map(|level| Writer::Brotli.whole(&text, level));
        let whole = pieces(Coding::Brotli, &[&one]).unwrap();
        prop_assert_eq!(whole.concat(), &*text);
        let two: Vec<&[u8]> = two.chunks(text.len().max(cut)).collect();
        prop_assert_eq!(sizes(&whole), sizes(&pieces(Coding::Brotli, &two).unwrap()));
    }

    #[test]
    fn received_shapes_tell_nothing_of_a_guess_beside_a_secret(
        before in "[a-z \n]{0,40000}",
        between in "[a-z \n]{0,20000}",
        right in "[a-zA-Z0-9]{24}",
        wrong in "[a-zA-Z0-9]{24}",
        guessed in 12usize..24,
        cut in 1usize..2000,
    ) {
        let guess = &right[..guessed];
        let shape = |secret: &str, writer: Writer, cut: usize| {
            let messages = [format!("{before}{secret}\n"), format!("{between}{guess} end")];
            let messages = [messages[0].as_bytes(), messages[1].as_bytes()];
            let (stream, _) = writer.flushed(&messages, 6);
            let mut masking = MaskStream::new(masks(&[secret]), false);
            let chunks: Vec<&[u8]> = stream.chunks(cut).collect();
            let mut out: Vec<Bytes> = pieces(writer.coding(), &chunks).unwrap();
            out.iter_mut().for_each(|piece| *piece = masking.push(std::mem::take(piece)));
            out.push(masking.finish());
            (sizes(&out), out.concat(), stream.len())
        };
        for writer in [Writer::Gzip, Writer::Zstd] {
            let (one, two) = (shape(&right, writer, cut), shape(&wrong, writer, cut + 7));
            prop_assert_eq!(&one.0, &two.0, "{:?}", writer);
            if right != wrong {
                prop_assert_eq!(&one.1, &two.1, "{:?}", writer);
            }
        }
    }

    #[test]
    fn any_bytes_decode_to_a_text_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        cut in 1usize..400,
    ) {
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd] {
            let whole = text_of(coding, &[&bytes]);
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(whole.is_ok(), text_of(coding, &chunks).is_ok());
        }
    }
}
