/** Randomness of the operating system for ids and seeds. Used by the composition root. */
import { randomBytes } from 'node:crypto';
import type { Entropy } from './ports.js';

const TWO_53 = 2n ** 53n;

function draw53(): number {
  return Number(randomBytes(8).readBigUInt64LE() % TWO_53);
}

export const systemEntropy: Entropy = {
  id: () => randomBytes(16).toString('hex'),
  seed: draw53,
  jitter: () => draw53() / Number(TWO_53),
};
