/**
 * Which text side serves a request: looked up by base and adapter version, never by name. An adapter folder's own chat
 * template serves its requests; everything else it shares with the base. Filled where adapters are loaded, read by the
 * service; requests in flight keep the TextModel that they began with.
 */
import { bug } from '../core/errors.js';
import type { AdapterVersion } from '../core/ids.js';
import { adapterChatTemplate, checkAdapterTokenizer, type AdapterTextFiles } from './adapter-text.js';
import type { TextModel } from './text-model.js';

export class TextRegistry {
  readonly #fingerprint: string;
  readonly #base: TextModel;
  readonly #models = new Map<string, Promise<TextModel>>();

  /** `fingerprint`: the base checkpoint's, the base's half of the key. */
  constructor(fingerprint: string, base: TextModel) {
    this.#fingerprint = fingerprint;
    this.#base = base;
  }

  get base(): TextModel {
    return this.#base;
  }

  /** Makes the version known; refuses one whose tokenizer or template cannot be served. Once per version is enough. */
  async add(version: AdapterVersion, files: AdapterTextFiles): Promise<TextModel> {
    const key = this.#key(version);
    const model = this.#models.get(key) ?? this.#create(files);
    this.#models.set(key, model);
    try {
      return await model;
    } catch (error) {
      this.#models.delete(key);
      throw error;
    }
  }

  /** Forgets the version; lookups of it are bugs from then on. */
  remove(version: AdapterVersion): void {
    this.#models.delete(this.#key(version));
  }

  /** The base's own for `undefined`. */
  async lookup(version: AdapterVersion | undefined): Promise<TextModel> {
    if (version === undefined) return this.#base;
    return this.#models.get(this.#key(version)) ?? bug(`The adapter version ${version} has no text side`);
  }

  async #create(files: AdapterTextFiles): Promise<TextModel> {
    checkAdapterTokenizer(this.#base.tokenizer, files);
    const template = adapterChatTemplate(files);
    return template === undefined || template === this.#base.chatTemplate
      ? this.#base
      : this.#base.withTemplate(template);
  }

  #key(version: AdapterVersion): string {
    return `${this.#fingerprint} ${version}`;
  }
}
