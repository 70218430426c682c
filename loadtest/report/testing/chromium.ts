/**
 * A headless Chromium driven over its DevTools pipe (messages of JSON, each ended by a zero byte, on file descriptors 3 and 4),
 * for checks of pages as people see them. Chromium is found on the PATH; it is no dependency of the project.
 */
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { Readable, Writable } from 'node:stream';

/** Names under which distributions install it. */
const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'] as const;
/** No answer for so long means a dead browser. */
const PATIENCE_MS = 60_000;

interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly sessionId?: string;
  readonly params?: unknown;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}

export interface View {
  readonly width: number;
  readonly height: number;
  readonly scheme: 'light' | 'dark';
}

/** One tab. */
export interface Page {
  /** Every URL that the page asked for since the last {@link Page.open}, and what the console said. */
  readonly requests: readonly string[];
  readonly complaints: readonly string[];
  readonly open: (url: string, view: View) => Promise<void>;
  /** The value of a JavaScript expression, as JSON. */
  readonly evaluate: (expression: string) => Promise<unknown>;
  /** PNG of the whole page, at most `maxHeight` CSS pixels of it. */
  readonly screenshot: (maxHeight: number) => Promise<Buffer>;
}

export interface Browser {
  readonly version: string;
  readonly page: Page;
  readonly close: () => Promise<void>;
}

/** `undefined` when no Chromium is installed. */
export async function startChromium(): Promise<Browser | undefined> {
  for (const name of NAMES) {
    const profile = await mkdtemp(join(tmpdir(), 'manyfold-chromium-'));
    const browser = await startNamed(name, profile);
    if (browser !== undefined) return browser;
    await rm(profile, { recursive: true, force: true });
  }
  return undefined;
}

async function startNamed(name: string, profile: string): Promise<Browser | undefined> {
  const child = spawn(
    name,
    [
      '--headless=new',
      // Containers have no user namespaces for its sandbox; the pages are our own files.
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--hide-scrollbars',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      // Should a page ask for a host all the same, its name is not even looked up.
      '--host-resolver-rules=MAP * ~NOTFOUND',
      `--user-data-dir=${profile}`,
      '--remote-debugging-pipe',
      'about:blank',
    ],
    { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] },
  );
  // An error before the start, such as no file of this name, rejects.
  const isStarted = await once(child, 'spawn').then(
    () => true,
    () => false,
  );
  if (!isStarted) return undefined;
  const pipe = new DevToolsPipe(child);
  const version = (await pipe.call('Browser.getVersion')) as { product: string };
  const page = await openPage(pipe);
  return {
    version: version.product,
    page,
    close: async () => {
      const ended = once(child, 'exit');
      await pipe.call('Browser.close').catch(() => child.kill('SIGKILL'));
      await ended;
      await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
    },
  };
}

class DevToolsPipe {
  readonly #waiting = new Map<number, { resolve: (result: unknown) => void; reject: (reason: Error) => void }>();
  readonly #listeners = new Set<(message: Message) => void>();
  readonly #input: Writable;
  #lastId = 0;

  constructor(child: ChildProcess) {
    const [, , , input, output] = child.stdio;
    if (!(input instanceof Writable) || !(output instanceof Readable))
      throw new Error('Chromium was started without pipes');
    this.#input = input;
    let rest = '';
    output.setEncoding('utf8');
    output.on('data', (chunk: string) => {
      const messages = (rest + chunk).split('\0');
      rest = messages.pop() ?? '';
      for (const message of messages) this.#receive(JSON.parse(message) as Message);
    });
    child.once('exit', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('Chromium ended'));
      this.#waiting.clear();
    });
    // A browser that is gone is told by 'exit'; the broken pipe says the same once more.
    input.on('error', () => undefined);
  }

  #receive(message: Message): void {
    if (message.id === undefined) {
      for (const listener of this.#listeners) listener(message);
      return;
    }
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (message.error === undefined) waiting?.resolve(message.result);
    else waiting?.reject(new Error(message.error.message));
  }

  onEvent(listener: (message: Message) => void): void {
    this.#listeners.add(listener);
  }

  call(method: string, params: object = {}, sessionId?: string): Promise<unknown> {
    this.#lastId += 1;
    const id = this.#lastId;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`Chromium did not answer ${method}`)), PATIENCE_MS);
      this.#waiting.set(id, {
        resolve: (result) => (clearTimeout(timer), resolve(result)),
        reject: (reason) => (clearTimeout(timer), reject(reason)),
      });
      this.#input.write(
        `${JSON.stringify({ id, method, params, ...(sessionId === undefined ? {} : { sessionId }) })}\0`,
      );
    });
  }
}

async function openPage(pipe: DevToolsPipe): Promise<Page> {
  const { targetId } = (await pipe.call('Target.createTarget', { url: 'about:blank' })) as { targetId: string };
  const attached = (await pipe.call('Target.attachToTarget', { targetId, flatten: true })) as { sessionId: string };
  const call = (method: string, params: object = {}): Promise<unknown> => pipe.call(method, params, attached.sessionId);
  const requests: string[] = [];
  const complaints: string[] = [];
  let onLoad: () => void = () => undefined;
  pipe.onEvent(({ method, params }) => {
    if (method === 'Network.requestWillBeSent') requests.push((params as { request: { url: string } }).request.url);
    if (method === 'Log.entryAdded') complaints.push((params as { entry: { text: string } }).entry.text);
    if (method === 'Page.loadEventFired') onLoad();
  });
  for (const domain of ['Page', 'Network', 'Log', 'Runtime']) await call(`${domain}.enable`);
  return {
    requests,
    complaints,
    open: async (url, { width, height, scheme }) => {
      requests.length = 0;
      complaints.length = 0;
      const features = [{ name: 'prefers-color-scheme', value: scheme }];
      await call('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 600 });
      await call('Emulation.setEmulatedMedia', { features });
      const loaded = new Promise<void>((resolve) => (onLoad = resolve));
      await call('Page.navigate', { url });
      await loaded;
    },
    evaluate: async (expression) => {
      const answer = (await call('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true })) as {
        result: { value?: unknown };
        exceptionDetails?: { text: string };
      };
      if (answer.exceptionDetails !== undefined) throw new Error(`The page threw: ${answer.exceptionDetails.text}`);
      return answer.result.value;
    },
    screenshot: async (maxHeight) => {
      const { cssContentSize } = (await call('Page.getLayoutMetrics')) as {
        cssContentSize: { width: number; height: number };
      };
      const clip = {
        x: 0,
        y: 0,
        width: cssContentSize.width,
        height: Math.min(maxHeight, cssContentSize.height),
        scale: 1,
      };
      const picture = (await call('Page.captureScreenshot', { format: 'png', clip, captureBeyondViewport: true })) as {
        data: string;
      };
      return Buffer.from(picture.data, 'base64');
    },
  };
}
