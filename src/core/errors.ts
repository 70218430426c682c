/**
 * The one error registry. Every error that a user can meet is a {@link ManyfoldError} with a code of
 * {@link ERROR_CODES}; its message says what was expected, what came, and ends with the mend.
 * The server turns it into OpenAI's envelope; metrics and logs use the code.
 */

/** What a code means on HTTP. `type` is the `error.type` of OpenAI's envelope. */
interface ErrorKind {
  readonly status: number;
  readonly type: string;
  /** Whether the same request may succeed later without a change. */
  readonly retryable: boolean;
}

export const ERROR_CODES = {
  invalid_request: { status: 400, type: 'invalid_request_error', retryable: false },
  context_length_exceeded: { status: 400, type: 'invalid_request_error', retryable: false },
  invalid_template: { status: 400, type: 'invalid_request_error', retryable: false },
  /** Any other failure of the run-time LoRA routes: the type and status that vLLM's clients expect. */
  bad_request: { status: 400, type: 'BadRequestError', retryable: false },
  invalid_user_input: { status: 400, type: 'InvalidUserInput', retryable: false },
  invalid_api_key: { status: 401, type: 'authentication_error', retryable: false },
  forbidden: { status: 403, type: 'permission_error', retryable: false },
  not_found: { status: 404, type: 'NotFoundError', retryable: false },
  model_not_found: { status: 404, type: 'NotFoundError', retryable: false },
  method_not_allowed: { status: 405, type: 'invalid_request_error', retryable: false },
  request_timeout: { status: 408, type: 'invalid_request_error', retryable: true },
  adapter_conflict: { status: 409, type: 'invalid_request_error', retryable: true },
  request_too_large: { status: 413, type: 'invalid_request_error', retryable: false },
  unsupported_media_type: { status: 415, type: 'invalid_request_error', retryable: false },
  invalid_adapter: { status: 422, type: 'invalid_request_error', retryable: false },
  rate_limited: { status: 429, type: 'rate_limit_error', retryable: true },
  overloaded: { status: 503, type: 'server_error', retryable: true },
  shutting_down: { status: 503, type: 'server_error', retryable: true },
  engine_failure: { status: 500, type: 'server_error', retryable: true },
  bug: { status: 500, type: 'server_error', retryable: false },
  /** A model file or folder that cannot be served; raised while loading, never to a client. */
  invalid_model: { status: 500, type: 'server_error', retryable: false },
  /** A flag, environment variable or YAML key that cannot be used; raised while starting. */
  invalid_config: { status: 500, type: 'server_error', retryable: false },
  /** A download that failed for good; raised while starting or by `manyfold pull`. */
  download_failed: { status: 502, type: 'server_error', retryable: true },
  /** The native addon is missing, will not load, or lacks what was asked for. */
  native_unavailable: { status: 500, type: 'server_error', retryable: false },
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof ERROR_CODES;

export interface ErrorDetails {
  /** The request field, flag, tensor key or metadata key that is wrong. */
  readonly param?: string;
  readonly cause?: unknown;
  /** Seconds after which a retry has a fair chance; sent as `retry-after`. */
  readonly retryAfterSeconds?: number;
}

export class ManyfoldError extends Error {
  readonly code: ErrorCode;
  readonly param: string | undefined;
  readonly retryAfterSeconds: number | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'ManyfoldError';
    this.code = code;
    this.param = details.param;
    this.retryAfterSeconds = details.retryAfterSeconds;
  }

  get status(): number {
    return ERROR_CODES[this.code].status;
  }

  get type(): string {
    return ERROR_CODES[this.code].type;
  }

  get retryable(): boolean {
    return ERROR_CODES[this.code].retryable;
  }
}

/** An error as plain data, so that it can cross the engine port. */
export interface PlainError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly param?: string;
  readonly retryAfterSeconds?: number;
}

/** Any thrown value as plain data. What is not a {@link ManyfoldError} is a bug and says so. */
export function toPlainError(thrown: unknown): PlainError {
  if (thrown instanceof ManyfoldError) {
    return {
      code: thrown.code,
      message: thrown.message,
      ...(thrown.param === undefined ? {} : { param: thrown.param }),
      ...(thrown.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: thrown.retryAfterSeconds }),
    };
  }
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return { code: 'bug', message: `${text}. This is a bug in Manyfold; please report it with the server's log.` };
}

/** The inverse of {@link toPlainError}. */
export function fromPlainError(plain: PlainError): ManyfoldError {
  return new ManyfoldError(plain.code, plain.message, {
    ...(plain.param === undefined ? {} : { param: plain.param }),
    ...(plain.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: plain.retryAfterSeconds }),
  });
}

/** Throws for a state that cannot be; the reader of the message is a developer of Manyfold. */
export function bug(what: string): never {
  throw new ManyfoldError('bug', `${what}. This is a bug in Manyfold; please report it with the server's log.`);
}
