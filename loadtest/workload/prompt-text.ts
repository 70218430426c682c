/**
 * Prompts out of nothing but a seed and a length. The client knows no tokenizer, so words are common and short: with a
 * space before them, nearly all are one token of the usual byte-pair vocabularies. What the server really counted stands
 * in the report beside what was asked for.
 */
import { pick, seededRandom } from './random.js';

/** To be raised with any change here: an old report's prompts must never silently come out differently. */
export const GENERATOR_VERSION = 1;

const WORDS = (
  'time year people way day man thing woman life child world school state family student group country problem hand ' +
  'part place case week company system program question work government number night point home water room mother ' +
  'area money story fact month lot right study book eye job word business issue side kind head house service friend ' +
  'father power hour game line end member law car city community name president team minute idea body information ' +
  'back parent face others level office door health person art war history party result change morning reason ' +
  'research girl guy moment air teacher force education foot boy age policy music market sense plan interest death ' +
  'experience effect use class control field development role effort rate heart drug show leader light voice wife ' +
  'police mind price report decision son view relationship town road arm difference value building action season ' +
  'society tax director position player record paper space ground form event matter center table court oil half ' +
  'sound model image fire sun tree river sea wind stone garden summer winter letter page song bird horse dog'
).split(' ');

/** Text of about `tokens` tokens; equal seeds and lengths give equal text, and a longer text begins with the shorter. */
export function promptText(seed: number, tokens: number): string {
  const random = seededRandom(seed);
  const words: string[] = [];
  for (let index = 0; index < tokens; index++) words.push(WORDS[pick(WORDS.length, random)] as string);
  return words.join(' ');
}
