/** The methods that are served, in the order in which they are asked whether a folder is theirs. */
import type { AdapterImporter } from '../importer.js';
import { loraImporter } from './lora.js';
import { s2ftImporter } from './s2ft.js';

export const IMPORTERS: readonly AdapterImporter[] = [loraImporter, s2ftImporter];
