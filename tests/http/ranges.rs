//! Parts of an answer: they are cut out of the whole after it was masked, so that nobody reads a
//! key in halves.

use http::Request;
use lab::{client::Response, gateway::OPENAI_SECRET, net::OPENAI, sandboxed};

use crate::world::{TICKET, World, get_path};

const PATH: &str = "/v1/coded?echo=1";

fn ask_h1(world: &World, fields: &[(&str, &str)]) -> Response {
    let lines: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let mut all = vec![TICKET];
    all.extend(lines.iter().map(String::as_str));
    world.ask(&get_path(PATH, &all))
}

fn ask_h2(world: &World, fields: &[(&str, &str)]) -> Response {
    let mut request = Request::get(format!("https://{}{PATH}", OPENAI.name))
        .header("authorization", "Bearer OPENAI_API_KEY");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut h2 = world.h2(OPENAI).expect("a connection");
    h2.ask(request.body(()).expect("a request"), "").expect("an answer")
}

#[test]
fn a_part_equals_that_part_of_the_masked_whole() {
    sandboxed(|| {
        let world = World::usual();
        for ask in [ask_h1 as fn(&World, &[(&str, &str)]) -> Response, ask_h2] {
            let whole = ask(&world, &[]).text();
            assert!(whole.starts_with('*') && !whole.contains(OPENAI_SECRET), "{whole}");
            let (length, middle) = (whole.len(), OPENAI_SECRET.len() / 2);
            for first in [0, 1, middle, length / 2, length - 1] {
                let part = ask(&world, &[("range", &format!("bytes={first}-"))]);
                assert_eq!(part.status, 206, "{first}");
                assert_eq!(part.text(), whole[first..], "{first}");
                let said = format!("bytes {first}-{}/{length}", length - 1);
                assert_eq!(part.headers["content-range"], said, "{first}");
                assert_eq!(part.headers["content-length"], (length - first).to_string());
            }
            // Two halves of the key are no key together.
            let half = |range: String| {
                let fields = [
                    ("range", &*range),
                    ("if-range", "\"of-the-text\""),
                    ("accept-encoding", "gzip"),
                ];
                let part = ask(&world, &fields);
                assert_eq!(part.status, 206, "{range}");
                part.text()
            };
            let both = half(format!("bytes=0-{}", middle - 1)) + &half(format!("bytes={middle}-"));
            assert_eq!(both, whole);
        }
        for request in world.origin.log().requests() {
            assert!(request.header("range").is_empty() && request.header("if-range").is_empty());
        }
        world.gateway.audit.wait_for(|record| record["masked"].as_u64() > Some(0));
        world.assert_secrets_untold();
    });
}

#[test]
fn where_no_part_can_be_cut_the_whole_comes() {
    sandboxed(|| {
        let world = World::usual();
        let whole = ask_h1(&world, &[]).text();
        for fields in [
            &[("range", "bytes=1-"), ("if-range", "\"another\"")][..],
            &[("range", "bytes=1-"), ("if-range", "W/\"of-the-text\"")],
            &[("range", "bytes=0-1, 4-5")],
            &[("range", "bytes=-5")],
            &[("range", "bytes=100000-")],
            &[("range", "lines=1-2")],
        ] {
            let answer = ask_h1(&world, fields);
            assert_eq!(answer.status, 200, "{fields:?}");
            assert_eq!(answer.text(), whole, "{fields:?}");
            assert!(!answer.headers.contains_key("content-range"), "{fields:?}");
        }
    });
}
