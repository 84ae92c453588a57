// Vercel's AI SDK, by each of its providers that speaks a dialect of the edge. Prints what it got, as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2] + "/v1";
const openai = createOpenAI({ baseURL, apiKey: "none" });
const models = {
  compatible: createOpenAICompatible({ name: "edge", baseURL, supportsStructuredOutputs: true })("demo-edge"),
  chat: openai.chat("demo-edge"),
  responses: openai.responses("demo-edge"),
  messages: createAnthropic({ baseURL, apiKey: "none" })("demo-edge"),
};
const Place = z.object({ kind: z.enum(["tower", "bridge"]), tall: z.boolean() });
const found = {};
for (const [name, model] of Object.entries(models)) {
  const asked = { model, temperature: 0, maxRetries: 0, maxOutputTokens: 100 };
  const prompt = "What is machine learning?";
  const text = (await generateText({ ...asked, prompt })).text;
  let streamed = "";
  for await (const part of streamText({ ...asked, prompt }).textStream) streamed += part;
  const place = (await generateText({ ...asked, prompt: "A place?", output: Output.object({ schema: Place }) })).output;
  const cities = [];
  const weather = tool({
    description: "The weather in a city.",
    inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
    execute: async ({ city }) => (cities.push(city), "22 degrees"),
  });
  const round = {
    ...asked,
    prompt: "The weather?",
    tools: { weather },
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: "tool", toolName: "weather" } : "none" }),
  };
  const finish = (await generateText(round)).finishReason;
  const streamedRound = streamText(round);
  await streamedRound.consumeStream();
  found[name] = { text, streamed, place, cities, finish: [finish, await streamedRound.finishReason] };
}
console.log(JSON.stringify(found));
