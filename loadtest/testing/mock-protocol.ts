/** What a client asked the mock for, and how the answer is written: one shape for each route. */
export interface MockRequest {
  readonly adapter: string;
  readonly prompt: string;
  readonly promptTokens: number;
  readonly maxTokens: number;
  /** The bytes of one token. */
  piece(index: number, isLast: boolean): string;
  /** What follows the last token. */
  end(withUsage: boolean): string;
}

interface Body {
  readonly model?: string;
  readonly messages?: readonly { readonly content: string }[];
  readonly prompt?: string;
  readonly max_tokens?: number;
  readonly lora?: readonly { readonly id: number; readonly scale: number }[];
  readonly inputs?: string;
  readonly parameters?: { readonly max_new_tokens?: number; readonly adapter_id?: string };
}

/** Throws for a body that is no JSON. */
export function protocolOf(path: string, text: string): MockRequest {
  const body = JSON.parse(text) as Body;
  const prompt = body.messages?.map(({ content }) => content).join('\n') ?? body.prompt ?? body.inputs ?? '';
  const promptTokens = prompt.split(' ').length;
  const maxTokens = body.max_tokens ?? body.parameters?.max_new_tokens ?? 16;
  const named = body.lora === undefined ? body.model : namedByIds(body.lora);
  const adapter = body.parameters === undefined ? (named ?? '') : (body.parameters.adapter_id ?? 'base');
  const facts = { adapter, prompt, promptTokens, maxTokens };
  if (path.endsWith('/generate_stream')) return { ...facts, ...generateEvents(facts) };
  return { ...facts, ...openAiEvents(facts, path.includes('/chat/')) };
}

/** llama-server's list: an adapter at scale 0 is switched off, and none on is the base. */
function namedByIds(lora: NonNullable<Body['lora']>): string {
  const on = lora.filter(({ scale }) => scale !== 0);
  return on.length === 0 ? 'base' : `lora:${on.map(({ id }) => id).join('+')}`;
}

type Events = Pick<MockRequest, 'piece' | 'end'>;
type Facts = Pick<MockRequest, 'promptTokens' | 'maxTokens'>;

const frame = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;

function openAiEvents({ promptTokens, maxTokens }: Facts, isChat: boolean): Events {
  const usage = {
    prompt_tokens: promptTokens,
    completion_tokens: maxTokens,
    total_tokens: promptTokens + maxTokens,
  };
  const chunk = (text: string, finish: string | null): string =>
    frame({
      id: 'mock',
      choices: [{ index: 0, ...(isChat ? { delta: { content: text } } : { text }), finish_reason: finish }],
    });
  return {
    // Characters of several bytes, so that chunks end inside of them.
    piece: (index, isLast) => chunk(index % 2 === 0 ? ' tök' : ' 字', isLast ? 'length' : null),
    end: (withUsage) => `${withUsage ? frame({ id: 'mock', choices: [], usage }) : ''}data: [DONE]\n\n`,
  };
}

function generateEvents({ promptTokens, maxTokens }: Facts): Events {
  const details = { finish_reason: 'length', generated_tokens: maxTokens, prompt_tokens: promptTokens };
  return {
    piece: (index, isLast) =>
      frame({
        token: { id: index, text: ' tok', special: false },
        ...(isLast ? { generated_text: 'tok', details } : { generated_text: null, details: null }),
      }),
    end: () => '',
  };
}
