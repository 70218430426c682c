/**
 * The limits that belong to text, in one place: what a request may hand to the tokenizer, the template engine and the
 * stop matcher, whoever calls. Those that have a flag (prompt, messages, stop strings) are ceilings here; the service
 * enforces the configured, usually much smaller numbers first.
 */
export const TEXT_LIMITS = {
  /** UTF-8 bytes of a prompt before tokenizing. */
  promptBytes: 16 * 1024 * 1024,
  /** UTF-8 bytes of a chat template. */
  templateBytes: 128 * 1024,
  /** UTF-16 units that a template may write; more than `promptBytes` could not be tokenized anyway. */
  renderedChars: 16 * 1024 * 1024,
  /** Milliseconds that one rendering may take. */
  renderDeadlineMs: 250,
  /** Elements of one `range(…)` in a template. */
  rangeItems: 10_000,
  /** `chat_template_kwargs`: keys, bytes as JSON, and nesting. */
  kwargsKeys: 32,
  kwargsBytes: 16 * 1024,
  kwargsDepth: 8,
  messages: 100_000,
  stopStrings: 1024,
  /** UTF-16 units of one stop string. */
  stopChars: 65_536,
} as const;
