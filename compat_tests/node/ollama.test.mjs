// Ollama's client for Node. `test_node.py` runs this with the server's address and the models' names.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Ollama } from "ollama";

const { VMM_BASE_URL, MODEL, SCRIPTED, EMBEDDING_MODEL } = process.env;
const client = new Ollama({ host: VMM_BASE_URL });
const capital = "What is the capital of France? Answer in one sentence.";
const options = { temperature: 0, num_predict: 40 };
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather at a place, now.",
    parameters: { type: "object", properties: { location: { type: "string" } }, required: ["location"] },
  },
};

const said = (content) => [{ role: "user", content }];

async function gathered(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

test("chat answers, whole and streamed", async () => {
  const reply = await client.chat({ model: MODEL, messages: said(capital), options });
  assert.match(reply.message.content, /Paris/);
  assert.equal(reply.done_reason, "stop");
  assert.ok(reply.eval_count > 0 && reply.total_duration > reply.eval_duration);
  const parts = await gathered(await client.chat({ model: MODEL, messages: said(capital), options, stream: true }));
  assert.equal(parts.map((part) => part.message.content).join(""), reply.message.content);
  assert.ok(parts.at(-1).done);
});

test("generate answers, whole and streamed, and goes on from its context", async () => {
  const reply = await client.generate({ model: MODEL, prompt: capital, options });
  assert.match(reply.response, /Paris/);
  const parts = await gathered(await client.generate({ model: MODEL, prompt: capital, options, stream: true }));
  assert.equal(parts.map((part) => part.response).join(""), reply.response);
  const second = await client.generate({ model: MODEL, prompt: "Why?", context: reply.context, options });
  assert.ok(second.prompt_eval_count > reply.prompt_eval_count);
});

test("an aborted stream stops", async () => {
  const stream = await client.chat({ model: MODEL, messages: said("Count to a thousand."), stream: true });
  await assert.rejects(async () => {
    for await (const _ of stream) stream.abort();
  }, { name: "AbortError" });
});

test("a tool is called, and its result answered", async () => {
  const messages = said("How is the weather in Paris?");
  const first = await client.chat({ model: SCRIPTED, messages, tools: [weather] });
  assert.deepEqual(first.message.tool_calls.map((call) => call.function.arguments), [{ location: "Paris" }]);
  messages.push(first.message, { role: "tool", tool_name: "get_weather", content: "sunny" });
  const second = await client.chat({ model: SCRIPTED, messages, tools: [weather] });
  assert.equal(second.message.content, "It is sunny in Paris.");
});

test("thinking is apart", async () => {
  const reply = await client.chat({ model: SCRIPTED, messages: said("What is 17 times 3?"), think: true });
  assert.match(reply.message.thinking, /Ten times three/);
  assert.equal(reply.message.content, "17 times 3 is 51.");
});

test("a form is kept", async () => {
  const format = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
  const reply = await client.chat({ model: SCRIPTED, messages: said("Where is Ada?"), format });
  assert.equal(JSON.parse(reply.message.content).name, "Ada Lovelace");
});

test("embed and embeddings give vectors", async () => {
  const reply = await client.embed({ model: EMBEDDING_MODEL, input: ["A cat.", "The shares fell."] });
  assert.deepEqual(reply.embeddings.map((vector) => vector.length), [384, 384]);
  const one = await client.embeddings({ model: EMBEDDING_MODEL, prompt: "A cat." });
  assert.equal(one.embedding.length, 384);
});

test("models are listed, shown, loaded and pulled", async () => {
  assert.match((await client.version()).version, /^\d+\.\d+\.\d+/);
  const names = (await client.list()).models.map((entry) => entry.model);
  assert.ok(names.some((name) => name.startsWith(`${SCRIPTED}:`)));
  assert.equal((await client.show({ model: MODEL })).details.family, "llama");
  await client.generate({ model: SCRIPTED, prompt: "" });
  assert.ok((await client.ps()).models.some((entry) => entry.name.startsWith(`${SCRIPTED}:`)));
  assert.equal((await client.pull({ model: MODEL })).status, "success");
  assert.equal((await gathered(await client.pull({ model: MODEL, stream: true }))).at(-1).status, "success");
});

test("a model is made, copied, pushed and deleted", async () => {
  const made = "compat/node:made";
  const far = `${new URL(VMM_BASE_URL).host}/compat/node:pushed`;
  const pushed = "compat/node:pushed";
  const parts = await gathered(await client.create({ model: made, from: SCRIPTED, system: "Be kind.", stream: true }));
  assert.equal(parts.at(-1).status, "success");
  assert.match((await client.show({ model: made })).system, /Be kind\./);
  assert.equal((await client.copy({ source: made, destination: far })).status, "success");
  assert.equal((await client.push({ model: far, insecure: true })).status, "success");
  assert.match((await client.show({ model: pushed })).system, /Be kind\./);
  for (const model of [made, far, pushed]) assert.equal((await client.delete({ model })).status, "success");
  await assert.rejects(client.delete({ model: made }), { name: "ResponseError", status_code: 404 });
});

test("errors have the server's words", async () => {
  await assert.rejects(client.chat({ model: "nonsense", messages: said("?") }), {
    name: "ResponseError", status_code: 404, error: "model 'nonsense' not found",
  });
  await assert.rejects(client.generate({ model: MODEL, prompt: "?", options: { num_predict: "many" } }), /num_predict/);
});
