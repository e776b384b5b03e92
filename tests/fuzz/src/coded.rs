//! Decoding: whatever the bytes, the result is a text or an error, and the pieces of the text do
//! not depend on how the bytes are cut.

use bytes::Bytes;
use cloakroom::scrub::{Coding, Decoder, DecoderProgress, PIECE, Undecodable};

use crate::input::Input;

/// Takes bytes in some coding, in chunks.
pub(crate) fn any_stream(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let coding = input.pick(&[Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd]);
    let sizes: [usize; 4] = std::array::from_fn(|_| input.up_to(64));
    let stream = input.rest();
    let whole = decoded(coding, &[stream]);
    let mut chunks = Vec::new();
    let mut rest = stream;
    for size in sizes.iter().cycle() {
        let (chunk, after) = rest.split_at((*size).min(rest.len()));
        chunks.push(chunk);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let cut = decoded(coding, &chunks);
    match (&whole, &cut) {
        (Ok(whole), Ok(cut)) => {
            assert!(whole.concat() == cut.concat(), "chunks change the text");
            // One in eight of brotli's flushes is recognised by the end of a chunk.
            let sizes = |pieces: &[Bytes]| pieces.iter().map(Bytes::len).collect::<Vec<_>>();
            assert!(coding == Coding::Brotli || sizes(whole) == sizes(cut), "chunks change pieces");
        }
        (Err(_), Err(_)) => {}
        _ => panic!("chunks make a stream good or bad"),
    }
    if whole.is_ok() && !stream.is_empty() {
        let shorter = stream.split_last().map(|(_, rest)| rest).unwrap_or_default();
        let is_end = shorter.is_empty() || decoded(coding, &[shorter]).is_err();
        // Any number of members or frames may follow one another; in no other coding does the
        // stream go on after its end.
        assert!(is_end || matches!(coding, Coding::Gzip | Coding::Zstd), "a cut stream is whole");
        assert!(decoded(coding, &[stream, b"\0"]).is_err(), "garbage may follow");
    }
}

fn decoded(coding: Coding, chunks: &[&[u8]]) -> Result<Vec<Bytes>, Undecodable> {
    let (mut decoder, mut pieces) = (Decoder::new(coding), Vec::new());
    let (mut read, mut written) = (0, 0);
    for chunk in chunks {
        read += chunk.len();
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.advance() {
                Ok(DecoderProgress::Piece(piece)) => {
                    assert!(!piece.is_empty() && piece.len() <= PIECE, "a piece has a size");
                    written += piece.len();
                    assert!(written <= MOST_FREE || written <= read * RATIO + PIECE, "a bomb");
                    pieces.push(piece);
                }
                Ok(DecoderProgress::Busy) => {}
                Ok(DecoderProgress::Hungry) => break,
                Err(why) => {
                    assert_eq!(decoder.advance(), Err(why), "an error stays one");
                    assert_eq!(decoder.finish(), Err(why), "an error stays one");
                    assert!(!decoder.rests(), "an error is no rest");
                    return Err(why);
                }
            }
        }
    }
    let rest = decoder.finish()?;
    pieces.extend((!rest.is_empty()).then_some(rest));
    Ok(pieces)
}

/// Bytes of text from which on the text may be no more than so many times as long as the stream.
const MOST_FREE: usize = 5 << 20;
const RATIO: usize = 201;
