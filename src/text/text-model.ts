/**
 * The text side of one model, or of one adapter with a template of its own: tokenizer, chat template, and what is made
 * of them per request. Created while loading; the service looks it up in text-registry.ts and calls it per request.
 */
import type { TextSource } from '../checkpoint/checkpoint.js';
import { ManyfoldError } from '../core/errors.js';
import { templateMessages, type ChatMessage, type TemplateMessage } from './chat-messages.js';
import { checkTemplateSize, type TemplateRenderer } from './chat-template.js';
import type { StreamDetokenizer } from './detokenize.js';
import { endOfTurnIds } from './end-of-turn.js';
import { isList, toPlainJson, type JsonValue } from './json-value.js';
import { pythonStrip } from './python-text.js';
import { StopMatcher, type StopOptions } from './stop.js';
import { checkTemplateKwargs, templateVariables } from './template-variables.js';
import { createTokenizer, type Tokenizer } from './tokenizer.js';

export interface RenderChatOptions {
  readonly tools?: readonly unknown[] | null;
  readonly documents?: readonly unknown[] | null;
  /** End with the beginning of an assistant's turn. True when left out, but for `continueFinalMessage`. */
  readonly addGenerationPrompt?: boolean;
  /** Leave the last message open, so that generation goes on with it. */
  readonly continueFinalMessage?: boolean;
  /** `chat_template_kwargs` of the request, unchecked. */
  readonly kwargs?: unknown;
}

export interface RenderedChat {
  readonly text: string;
  readonly ids: number[];
}

export interface TextModel {
  readonly tokenizer: Tokenizer;
  readonly chatTemplate: string | undefined;
  /** Ids that end a turn by the chat template, beside the model's own end-of-sequence ids. */
  readonly endOfTurnIds: readonly number[];
  renderChat(messages: readonly ChatMessage[], options?: RenderChatOptions): Promise<RenderedChat>;
  /** `promptIds`: the text goes on after them, so its leading space is kept, as vLLM does. */
  newDetokenizer(options: {
    readonly skipSpecialTokens: boolean;
    readonly promptIds?: readonly number[];
  }): StreamDetokenizer;
  newStopMatcher(stops: readonly string[], options?: StopOptions): StopMatcher;
  /** The same tokenizer with another template. */
  withTemplate(template: string): Promise<TextModel>;
}

export interface TextModelOptions {
  readonly source: TextSource;
  readonly renderer: TemplateRenderer;
  /** Text of `--chat-template FILE`; stands before the model's own. */
  readonly chatTemplate?: string;
}

export async function createTextModel(options: TextModelOptions): Promise<TextModel> {
  const tokenizer = await createTokenizer(options.source);
  return templateModel(tokenizer, options.renderer, options.chatTemplate ?? options.source.chatTemplate);
}

async function templateModel(
  tokenizer: Tokenizer,
  renderer: TemplateRenderer,
  template: string | undefined,
): Promise<TextModel> {
  if (template !== undefined) checkTemplateSize(template);
  const ends = template === undefined ? [] : await endOfTurnIds(template, tokenizer, renderer);
  return {
    tokenizer,
    chatTemplate: template,
    endOfTurnIds: ends,
    renderChat: async (messages, options = {}) => {
      const text = await renderText(template, tokenizer, renderer, messages, options);
      return { text, ids: await tokenizer.encodePrompt(text, 'chat') };
    },
    newDetokenizer: ({ skipSpecialTokens, promptIds = [] }) => {
      const continues = promptIds.some((id) => !skipSpecialTokens || !tokenizer.isSpecial(id));
      return tokenizer.newDetokenizer({ skipSpecialTokens, continues });
    },
    newStopMatcher: (stops, stopOptions) => new StopMatcher(stops, stopOptions),
    withTemplate: (other) => templateModel(tokenizer, renderer, other),
  };
}

async function renderText(
  template: string | undefined,
  tokenizer: Tokenizer,
  renderer: TemplateRenderer,
  messages: readonly ChatMessage[],
  options: RenderChatOptions,
): Promise<string> {
  if (template === undefined) {
    throw new ManyfoldError(
      'invalid_template',
      'This model has no chat template, so it cannot take messages. Send a prompt to /v1/completions, or start the ' +
        'server with --chat-template FILE.',
    );
  }
  const continues = options.continueFinalMessage === true;
  if (continues && options.addGenerationPrompt === true) {
    throw new ManyfoldError(
      'invalid_request',
      "'continue_final_message' and 'add_generation_prompt' are both true; a turn is either continued or begun. Set one to false.",
      { param: 'continue_final_message' },
    );
  }
  const plain = templateMessages(messages);
  const rendered = await renderer.render(
    template,
    templateVariables({
      messages: continues ? tagLast(plain) : plain,
      tools: plainList(options.tools, 'tools'),
      documents: plainList(options.documents, 'documents'),
      addGenerationPrompt: options.addGenerationPrompt ?? !continues,
      special: tokenizer.special,
      kwargs: checkTemplateKwargs(options.kwargs),
    }),
  );
  return continues ? cutAtTag(rendered, plain.at(-1)?.content ?? '') : rendered;
}

/** Marks the end of the last message; the space tells whether the template strips it. */
const TAG = 'CONTINUE_FINAL_MESSAGE_TAG';

function tagLast(messages: readonly TemplateMessage[]): TemplateMessage[] {
  return messages.map((message, index) =>
    index === messages.length - 1 ? { ...message, content: `${message.content}${TAG} ` } : message,
  );
}

/** The rendering up to the end of the last message, without white space at its end where the template strips that. */
function cutAtTag(rendered: string, content: string): string {
  const at = rendered.lastIndexOf(TAG);
  if (at < 0 || !rendered.includes(pythonStrip(content, 'strip'))) {
    throw new ManyfoldError(
      'invalid_request',
      "'continue_final_message' is true but the chat template changes the last message, so it cannot be continued. " +
        "Leave 'continue_final_message' out.",
      { param: 'continue_final_message' },
    );
  }
  const text = rendered.slice(0, at);
  return rendered.startsWith(`${TAG} `, at) ? text : pythonStrip(text, 'rstrip');
}

/** How deep schemas of tools may nest. */
const DEPTH_MAX = 64;

function plainList(values: readonly unknown[] | null | undefined, name: string): readonly JsonValue[] | null {
  if (values === undefined || values === null) return null;
  const plain = toPlainJson(values, DEPTH_MAX);
  if (isList(plain)) return plain;
  throw new ManyfoldError('invalid_request', `'${name}' is not a list of plain JSON. Send a JSON array.`, {
    param: name,
  });
}
