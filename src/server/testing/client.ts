/** An app over the service fixture, and short ways to call it. Used by the tests of this folder. */
import { makeFixture } from '../../service/testing/fixture.js';
import type { Fixture, FixtureOptions } from '../../service/testing/fixture.js';
import { createApp } from '../app.js';
import type { App } from '../app.js';
import type { AppOptions } from '../context.js';

export interface AppFixture extends Fixture {
  readonly app: App;
  post(path: string, body: unknown, headers?: Readonly<Record<string, string>>): Promise<Response>;
  get(path: string, headers?: Readonly<Record<string, string>>): Promise<Response>;
}

export interface AppFixtureOptions extends FixtureOptions {
  readonly app?: AppOptions;
  readonly apiKeys?: readonly string[];
}

export function makeApp(options: AppFixtureOptions = {}): AppFixture {
  const fixture = makeFixture(options);
  const deps = {
    service: fixture.service,
    telemetry: fixture.telemetry,
    version: '1.2.3',
    apiKeys: options.apiKeys ?? [],
  };
  const app = createApp(deps, options.app);
  return {
    ...fixture,
    app,
    get: async (path, headers = {}) => app.request(path, { headers }),
    post: async (path, body, headers = {}) =>
      app.request(path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
      }),
  };
}

/** The least that a chat request needs. */
export const CHAT = { model: 'toy', messages: [{ role: 'user', content: 'Hi' }] };

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: number;
  };
}

export async function errorOf(response: Response): Promise<ErrorBody['error']> {
  const body = (await response.json()) as ErrorBody;
  return body.error;
}

/** Lets the event loop turn until the condition holds. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}
