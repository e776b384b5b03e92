//! The `openai` and `anthropic` Python packages, as they come from the index: the key from the
//! environment, plain and streamed answers.

use lab::{
    client::{python, succeed},
    gateway::{ANTHROPIC_SECRET, OPENAI_SECRET},
    net::{ANTHROPIC, OPENAI},
    sandboxed,
};

use super::{Family, Scene, Swap};

const OPENAI_SCRIPT: &str = r#"
import openai
client = openai.OpenAI(base_url="https://api.openai.example/v1", max_retries=0)
assert client.api_key == "OPENAI_API_KEY", client.api_key
ask = dict(model="lab-1", messages=[{"role": "user", "content": "Hello"}])
answer = client.chat.completions.create(**ask)
assert answer.choices[0].message.content == "Hello from the lab", answer
parts = client.chat.completions.create(**ask, stream=True)
text = "".join(part.choices[0].delta.content or "" for part in parts)
assert text == "Hello from the lab", text
assert [model.id for model in client.models.list()] == ["lab-1"]
"#;

const ANTHROPIC_SCRIPT: &str = r#"
import anthropic
client = anthropic.Anthropic(base_url="https://api.anthropic.example", max_retries=0)
assert client.api_key == "ANTHROPIC_API_KEY", client.api_key
ask = dict(model="lab-1", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
answer = client.messages.create(**ask)
assert answer.content[0].text == "Hello from the lab", answer
with client.messages.stream(**ask) as stream:
    text = "".join(stream.text_stream)
assert text == "Hello from the lab", text
"#;

fn run(scene: &Scene, script: &str) {
    let file = scene.world.lab.write("client.py", script);
    succeed(scene.agent(&python().display().to_string()).arg(file));
}

fn openai(family: Family) {
    let scene = Scene::new(family);
    run(&scene, OPENAI_SCRIPT);
    scene.assert_swapped(&Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET), 3);
}

fn anthropic(family: Family) {
    let scene = Scene::new(family);
    run(&scene, ANTHROPIC_SCRIPT);
    // This package sends its key as a bearer token; `X-Api-Key` is in curl's tests.
    let swap = Swap::bearer(ANTHROPIC, "ANTHROPIC_API_KEY", ANTHROPIC_SECRET);
    scene.assert_swapped(&swap, 2);
}

#[test]
fn openai_works_over_ipv4() {
    sandboxed(|| openai(Family::V4));
}

#[test]
fn openai_works_over_ipv6() {
    sandboxed(|| openai(Family::V6));
}

#[test]
fn anthropic_works_over_ipv4() {
    sandboxed(|| anthropic(Family::V4));
}

#[test]
fn anthropic_works_over_ipv6() {
    sandboxed(|| anthropic(Family::V6));
}
