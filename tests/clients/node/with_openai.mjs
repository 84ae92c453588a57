// OpenAI's client in Node: chat, stream, tools, responses, structured output. Prints what it got, as JSON.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is machine learning?" }];
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "The weather.", parameters } }];
const Place = z.object({ kind: z.enum(["tower", "bridge"]), tall: z.boolean() });
const asked = { model: "demo-edge", temperature: 0 };
const found = {};

found.chat = (await client.chat.completions.create({ ...asked, messages })).choices[0].message.content;
found.streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, messages, stream: true }))
  found.streamed += chunk.choices[0]?.delta.content ?? "";

const forced = { ...asked, messages, tools, tool_choice: { type: "function", function: { name: "weather" } } };
const { message } = (await client.chat.completions.create(forced)).choices[0];
const [call] = message.tool_calls;
found.call = [call.function.name, JSON.parse(call.function.arguments)];
const streamed = await client.chat.completions.stream(forced).finalChatCompletion();
found.streamedCall = streamed.choices[0].message.tool_calls[0].function.arguments === call.function.arguments;
const result = { role: "tool", tool_call_id: call.id, content: "22 degrees" };
const after = await client.chat.completions.create({ ...asked, messages: [...messages, message, result], tools });
found.afterTheCall = after.choices[0].message.role;

const format = zodResponseFormat(Place, "place");
found.parsed = (await client.chat.completions.parse({ ...asked, messages, response_format: format })).choices[0].message.parsed;

found.response = (await client.responses.create({ ...asked, input: messages[0].content })).output_text;
found.responseStreamed = "";
for await (const event of await client.responses.create({ ...asked, input: messages[0].content, stream: true }))
  if (event.type === "response.output_text.delta") found.responseStreamed += event.delta;
const text = { format: zodTextFormat(Place, "place") };
found.responseParsed = (await client.responses.parse({ ...asked, input: "A place?", text })).output_parsed;
console.log(JSON.stringify(found));
