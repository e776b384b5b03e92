//! The answers that an agent receives do not tell how much of a key it has guessed.
//!
//! The agent stores guesses at an API and reads them back. Each comes at the end of a piece of the
//! answer, where a gateway that masks has to wait for the next bytes.

mod guesses;
mod seen;
mod shapes;
mod spellings;

use std::{io, thread};

use lab::{
    World,
    audit::Record,
    gateway::OPENAI_SECRET,
    net::OPENAI,
    sandboxed, wait,
    world::{TICKET, get_path},
};

/// Returns pieces that each end in a guess, each right in more bytes than the one before; or, if
/// `right` is false, in as many other characters.
fn guesses(right: bool) -> String {
    let lengths = [1, 4, 8, 12, 16, 20, OPENAI_SECRET.len() - 1];
    let piece = |length: usize| {
        let guess = &OPENAI_SECRET[..length];
        let wrong = guess.replace(|letter: char| letter.is_ascii_alphanumeric(), "q");
        let padding = "the beginning of a piece, ".repeat(3);
        let begin = PIECE - 1 - length;
        format!("{} {}", &padding[..begin], if right { guess } else { &wrong })
    };
    lengths.map(piece).concat()
}

fn path() -> String {
    format!("/v1/pieces?bytes={PIECE}&ms=400")
}

/// Returns the sizes of the chunks of the answer to this body.
fn chunks(world: &World, body: &str) -> Vec<usize> {
    let mut tls = world.h1(OPENAI).expect("a connection");
    let length = format!("Content-Length: {}", body.len());
    let head = get_path(&path(), &[TICKET, &length, "Connection: close"]);
    tls.send(head.replacen("GET", "POST", 1) + body).expect("sent");
    let answer = String::from_utf8(tls.read_to_end()).expect("text");
    let (_, mut rest) = answer.split_once("\r\n\r\n").expect("a head");
    let mut sizes = Vec::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        if size == 0 {
            break;
        }
        sizes.push(size);
        rest = &after[size + 2..];
    }
    sizes
}

/// Returns the sizes of the DATA frames.
fn frames(world: &World, body: &str) -> Vec<usize> {
    over_h2(world, &path(), body).expect("an answer")
}

/// Posts this body over HTTP/2, and returns the sizes of the answer's DATA frames.
fn over_h2(world: &World, path: &str, body: &str) -> io::Result<Vec<usize>> {
    let mut h2 = world.h2(OPENAI).expect("a connection");
    let (path, body) = (path.to_owned(), body.to_owned());
    let sizes = h2.run(|requests| async move {
        let request = http::Request::post(format!("https://{}{path}", OPENAI.name))
            .header("authorization", "Bearer OPENAI_API_KEY");
        let request = request.body(()).expect("a request");
        let (answer, mut send) = requests.ready().await?.send_request(request, false)?;
        send.send_data(body.into(), true)?;
        let mut answer = answer.await?.into_body();
        let mut sizes = Vec::new();
        while let Some(part) = answer.data().await.transpose()? {
            answer.flow_control().release_capacity(part.len())?;
            sizes.push(part.len());
        }
        Ok(sizes)
    });
    Ok(sizes?.into_iter().filter(|size| *size > 0).collect())
}

#[test]
fn an_answers_shape_tells_nothing_of_a_guess() {
    sandboxed(|| {
        let world = World::usual();
        let shape = |of: fn(&World, &str) -> Vec<usize>, right| of(&world, &guesses(right));
        thread::scope(|scope| {
            for (name, of) in [("h1", chunks as fn(&World, &str) -> Vec<usize>), ("h2", frames)] {
                let [right, wrong] =
                    [true, false].map(|right| scope.spawn(move || shape(of, right)));
                let (right, wrong) = (right.join().expect("read"), wrong.join().expect("read"));
                assert_eq!(right, wrong, "{name}");
                // The guess is held back and comes after a pause; otherwise there would be no shape
                // to compare.
                assert_eq!(right.iter().sum::<usize>(), 7 * PIECE, "{name}: {right:?}");
                assert!(right.len() >= 14, "{name}: {right:?}");
            }
        });
        assert!(world.origin.log().holds(OPENAI_SECRET), "the API had the key");
        world.gateway.audit.wait_for(|record| record["complete"] == true);
    });
}

#[test]
fn an_agent_that_keeps_guessing_has_its_answers_cut() {
    sandboxed(|| {
        let world = World::usual();
        let ask = |body: &str| {
            let length = format!("Content-Length: {}", body.len());
            let head = get_path("/v1/pieces?bytes=60000&ms=1", &[TICKET, &length]);
            let mut tls = world.h1(OPENAI).expect("a connection");
            tls.ask(head.replacen("GET", "POST", 1) + body)
        };
        let guess = format!("{} ", &OPENAI_SECRET[..OPENAI_SECRET.len() - 1]);
        let answer = ask(&guess).expect("a guess now and then is nothing");
        assert_eq!(answer.text(), guess);
        assert!(ask(&guess.repeat(4000)).is_err(), "all of it arrived");
        let probed = |record: &Record| record["reason"] == "secret_probed";
        world.gateway.audit.wait_for(probed);
        let h2 = |body: &str| over_h2(&world, "/v1/pieces?bytes=60000&ms=1", body);
        assert!(h2(&guess.repeat(4000)).is_err(), "all of it arrived over HTTP/2");
        let probes = || world.gateway.audit.records().into_iter().filter(probed).count();
        wait::expect("a record each", || probes() == 2);
        // Text without a guess passes as before.
        assert_eq!(ask("plain text").expect("an answer").text(), "plain text");
        world.assert_secrets_untold();
    });
}

/// Bytes of a piece.
const PIECE: usize = 64;
