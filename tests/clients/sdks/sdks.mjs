// SDKs of npm, as their users write it, each under its environment variables.
//
//     node sdks.mjs NAME          asks the service, and prints what came back

import { createRequire } from "node:module";
import process from "node:process";
import { pathToFileURL } from "node:url";

const installed = createRequire(`${process.env.SDKS}/package.json`);
const load = (name) => import(pathToFileURL(installed.resolve(name)).href);

const works = {
  async openai() {
    const { OpenAI } = await load("openai");
    const client = new OpenAI({ maxRetries: 0 });
    const ask = { model: "gpt-4o", messages: [{ role: "user", content: "Hello" }] };
    console.log((await client.chat.completions.create(ask)).choices[0].message.content);
    let text = "";
    for await (const part of await client.chat.completions.create({ ...ask, stream: true }))
      text += part.choices[0].delta.content ?? "";
    console.log(text);
    console.log((await client.responses.create({ model: "gpt-4o", input: "Hello" })).output_text);
  },
  async anthropic() {
    const { Anthropic } = await load("@anthropic-ai/sdk");
    const client = new Anthropic({ maxRetries: 0 });
    const ask = { model: "lab-1", max_tokens: 9, messages: [{ role: "user", content: "Hello" }] };
    console.log((await client.messages.create(ask)).content[0].text);
    console.log(await client.messages.stream(ask).finalText());
  },
  async gemini() {
    const { GoogleGenAI } = await load("@google/genai");
    const client = new GoogleGenAI({ apiKey: process.env.GEMINI_API_KEY });
    const ask = { model: "gemini-2.5-flash", contents: "Hello" };
    console.log((await client.models.generateContent(ask)).text);
    let text = "";
    for await (const part of await client.models.generateContentStream(ask)) text += part.text ?? "";
    console.log(text);
  },
  async gemini_live() {
    const { GoogleGenAI } = await load("@google/genai");
    const client = new GoogleGenAI({ apiKey: process.env.GEMINI_API_KEY });
    let done;
    const ended = new Promise((resolve) => (done = resolve));
    const session = await client.live.connect({
      model: "gemini-live",
      config: { responseModalities: ["TEXT"] },
      callbacks: {
        onmessage(message) {
          if (message.text) console.log(message.text);
          if (message.serverContent?.turnComplete) done();
        },
        onerror: (error) => done(console.error(error.message)),
        onclose: () => done(),
      },
    });
    session.sendClientContent({ turns: [{ role: "user", parts: [{ text: "Hello" }] }], turnComplete: true });
    await ended;
    session.close();
  },
};

await works[process.argv[2]]();
