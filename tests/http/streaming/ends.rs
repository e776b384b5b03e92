//! The effect on the other side when one side ends.

use http::Request;
use lab::{net::OPENAI, sandboxed, wait};

use super::world;
use crate::world::{TICKET, World, get, get_path};

fn ask(path: &str) -> Request<()> {
    let request = Request::get(format!("https://{}{path}", OPENAI.name));
    request.header("authorization", "Bearer OPENAI_API_KEY").body(()).expect("a request")
}

/// Tokens cost money: an agent that does not listen any more must not go on paying.
#[test]
fn an_agent_that_hangs_up_ends_the_apis_answer() {
    sandboxed(|| {
        let world = world();
        let mut tls = world.h1(OPENAI).expect("a connection");
        tls.send(get_path("/gated?n=1000000", &[TICKET])).expect("sent");
        world.origin.release();
        assert!(!tls.read_some(4096).expect("an answer").is_empty());
        drop(tls);
        // The origin lets its clients half-close, so it notices only when it sends.
        wait::expect("the API notices", || {
            world.origin.release();
            world.origin.abandoned() == 1
        });
        world.origin.log().wait_all_closed();
        let record = world.gateway.audit.wait_for(|record| record.is("request"));
        assert_eq!(record["complete"], false, "{record}");
    });
}

#[test]
fn resetting_one_stream_ends_that_answer_alone() {
    sandboxed(|| {
        let world = world();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let given_up = h2.run(|requests| async move {
            let mut requests = requests.ready().await?;
            let (answer, _) = requests.send_request(ask("/gated?n=5"), true)?;
            drop(answer.await?);
            Ok(())
        });
        given_up.expect("an answer");
        let answer = h2.ask(ask("/v1/models"), "").expect("the connection goes on");
        assert_eq!(answer.status, 200);
        wait::expect("the API notices", || world.origin.abandoned() == 1);
        assert_eq!(world.origin.log().connections().len(), 1);
    });
}

/// The API may end idle connections at any time. An agent that asks at that moment must learn that
/// the connection is gone, so that its client asks again, and must not get an error of the
/// gateway's.
#[test]
fn a_connection_ended_by_the_api_ends_for_agents() {
    sandboxed(|| {
        let world = world();
        let mut tls = world.h1(OPENAI).expect("a connection");
        assert_eq!(tls.ask(get(&[TICKET])).expect("an answer").status, 200);
        world.origin.say_goodbye();
        assert!(tls.read_to_end().is_empty(), "an end, and nothing before it");
        world.origin.log().wait_all_closed();

        let mut h2 = world.h2(OPENAI).expect("a connection");
        assert_eq!(h2.ask(ask("/v1/models"), "").expect("an answer").status, 200);
        world.origin.say_goodbye();
        world.origin.log().wait_all_closed();
        wait::expect("the agent's connection ends", || asked_again(&world, &mut h2));
    });
}

#[test]
fn an_api_that_says_goodbye_finishes_without_new_failures() {
    sandboxed(|| {
        let world = world();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let origin = &world.origin;
        let (held, mut rest) = h2
            .run(|requests| async move {
                let mut requests = requests.ready().await?;
                let (answer, _) = requests.send_request(ask("/gated?n=2"), true)?;
                origin.release();
                let mut body = answer.await?.into_body();
                let first = body.data().await.transpose()?.unwrap_or_default();
                Ok((first, body))
            })
            .expect("an answer that has begun");
        assert_eq!(held, "data: event 0\n\n");
        origin.say_goodbye();
        // The answer under way keeps the upstream connection open.
        wait::expect("new requests are sent elsewhere", || asked_again(&world, &mut h2));
        origin.release();
        let last =
            h2.run(|_| async move { Ok(rest.data().await.transpose()?.unwrap_or_default()) });
        assert_eq!(last.expect("the rest"), "data: event 1\n\n");
    });
}

/// Asks again: returns true if the connection is known to be gone, so that a client asks again on a
/// new one; false if the API answered. Anything else is an error that a client would show.
#[track_caller]
fn asked_again(world: &World, h2: &mut lab::client::H2) -> bool {
    match h2.ask(ask("/v1/models"), "") {
        Ok(answer) => {
            let audit = world.gateway.audit.text();
            assert_eq!(answer.status, 200, "{}\n{audit}", answer.text());
            false
        }
        Err(error) => {
            assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "no answer and no end");
            true
        }
    }
}
