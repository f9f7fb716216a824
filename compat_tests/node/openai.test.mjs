// OpenAI's client for Node. `test_node.py` runs this with the server's address and the models' names.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI, { BadRequestError, NotFoundError } from "openai";

const { VMM_BASE_URL, MODEL, SCRIPTED, EMBEDDING_MODEL } = process.env;
const client = new OpenAI({ baseURL: `${VMM_BASE_URL}/v1`, apiKey: "unused", maxRetries: 0 });
const capital = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather at a place, now.",
    parameters: { type: "object", properties: { location: { type: "string" } }, required: ["location"] },
  },
};

test("chat answers and counts", async () => {
  const reply = await client.chat.completions.create({ model: MODEL, messages: capital, temperature: 0, max_tokens: 40 });
  assert.match(reply.choices[0].message.content, /Paris/);
  assert.equal(reply.choices[0].finish_reason, "stop");
  assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
});

test("a stream is an async iterator with usage at its end", async () => {
  const stream = await client.chat.completions.create({
    model: MODEL, messages: capital, temperature: 0, max_tokens: 40, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let last;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    last = chunk;
  }
  assert.match(text, /Paris/);
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 3);
});

test("the stream helper gathers the whole", async () => {
  const stream = client.chat.completions.stream({ model: SCRIPTED, messages: [{ role: "user", content: "Say this." }] });
  const pieces = [];
  stream.on("content", (delta) => pieces.push(delta));
  const final = await stream.finalChatCompletion();
  assert.equal(pieces.join(""), "Say this.");
  assert.equal(final.choices[0].message.content, "Say this.");
});

for (const stream of [false, true]) {
  test(`runTools runs a tool and goes on, ${stream ? "streamed" : "whole"}`, async () => {
    const asked = [];
    const tool = {
      type: "function",
      function: {
        ...weather.function,
        parse: JSON.parse,
        function: ({ location }) => {
          asked.push(location);
          return "sunny";
        },
      },
    };
    const runner = client.chat.completions.runTools({
      model: SCRIPTED, stream, messages: [{ role: "user", content: "How is the weather in Paris?" }], tools: [tool],
    });
    assert.equal(await runner.finalContent(), "It is sunny in Paris.");
    assert.deepEqual(asked, ["Paris"]);
  });
}

test("a required tool is called by a model that would not", async () => {
  const reply = await client.chat.completions.create({
    model: MODEL, messages: capital, tools: [weather], tool_choice: "required", parallel_tool_calls: false,
    temperature: 0, max_tokens: 200,
  });
  const [call] = reply.choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.equal(typeof JSON.parse(call.function.arguments).location, "string");
});

test("embeddings come in base64 by default and are decoded", { skip: !EMBEDDING_MODEL }, async () => {
  const input = "A cat sits on the mat.";
  const packed = await client.embeddings.create({ model: EMBEDDING_MODEL, input });
  const plain = await client.embeddings.create({ model: EMBEDDING_MODEL, input, encoding_format: "float" });
  assert.equal(packed.data[0].embedding.length, 384);
  packed.data[0].embedding.forEach((value, i) => assert.ok(Math.abs(value - plain.data[0].embedding[i]) < 1e-6));
});

test("responses answer, and stream events", async () => {
  const reply = await client.responses.create({ model: SCRIPTED, input: "Say this." });
  assert.equal(reply.output_text, "Say this.");
  const events = [];
  for await (const event of await client.responses.create({ model: SCRIPTED, input: "Say this.", stream: true })) {
    events.push(event.type);
  }
  assert.equal(events[0], "response.created");
  assert.equal(events.at(-1), "response.completed");
});

test("failures have their class", async () => {
  await assert.rejects(client.chat.completions.create({ model: "none", messages: capital }), (error) => {
    assert.ok(error instanceof NotFoundError);
    assert.equal(error.code, "model_not_found");
    assert.ok(error.requestID);
    return true;
  });
  await assert.rejects(client.chat.completions.create({ model: MODEL, messages: [] }), BadRequestError);
});

test("leaving a stream leaves the server well", async () => {
  const stream = await client.chat.completions.create({ model: MODEL, messages: capital, max_tokens: 2000, stream: true });
  for await (const _ of stream) break;
  assert.equal((await client.models.list()).data.length > 0, true);
});
