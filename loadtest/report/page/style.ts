/** The style sheet of every page. No fonts, images or imports: a page must need nothing but itself. */

/** Colours that differ between light and dark; the six tones keep 3:1 against the surface in both. */
const LIGHT = `--page:#f6f7f9;--surface:#ffffff;--ink:#1b1f24;--soft:#5a6472;--rule:#d8dde3;--grid:#e7eaee;--band:#eef1f5;
--tone-1:#1668c7;--tone-2:#c2570c;--tone-3:#1a7f4b;--tone-4:#8a3ffc;--tone-5:#0e7c86;--tone-6:#a8326e;--bad:#c62828;--muted:#6b7684;
--bad-page:#fdecec;--good:#1a7f4b;--good-page:#e8f5ee;--warn:#8a5a00;--warn-page:#fff6e0`;
const DARK = `--page:#0f1216;--surface:#171b21;--ink:#e6e9ed;--soft:#9aa5b1;--rule:#303741;--grid:#252b33;--band:#1e242c;
--tone-1:#6cb0ff;--tone-2:#ff9d57;--tone-3:#5fd394;--tone-4:#bf9bff;--tone-5:#4fd0dc;--tone-6:#f58ac0;--bad:#ff7b72;--muted:#8b96a3;
--bad-page:#3a1b1d;--good:#5fd394;--good-page:#15301f;--warn:#f0c060;--warn-page:#33290f`;

const TONES = ['1', '2', '3', '4', '5', '6'].map((tone) => `.tone-${tone}{--tone:var(--tone-${tone})}`).join('');

/** Below this width figures stand in one column and in their narrow drawings. */
const PHONE = '(max-width:720px)';

export const STYLE = `
:root{color-scheme:light dark;${LIGHT}}
@media (prefers-color-scheme:dark){:root{${DARK}}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}
h2{font-size:19px;margin:36px 0 12px;padding-top:4px}
h3{font-size:15px;margin:0}
p{margin:0 0 8px}
a{color:var(--tone-1)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:13px}
pre{background:var(--surface);border:1px solid var(--rule);border-radius:8px;padding:10px 12px;margin:0 0 12px;white-space:pre-wrap}
.soft,figcaption p,footer{color:var(--soft)}
nav ul{display:flex;flex-wrap:wrap;gap:4px 16px;list-style:none;padding:0;margin:12px 0 0}
.banner{border-radius:10px;padding:12px 16px;margin:16px 0 0;border:1px solid var(--rule)}
.banner strong{font-size:17px}
.banner ul{margin:6px 0 0;padding-left:20px}
.banner.good{background:var(--good-page);border-color:var(--good)}
.banner.bad{background:var(--bad-page);border-color:var(--bad)}
.banner.warn{background:var(--warn-page);border-color:var(--warn)}
.tag{font-weight:600}
.tag.bad,.bad-text{color:var(--bad)}.tag.warn{color:var(--warn)}.good-text{color:var(--good)}
.cards{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:10px;margin:16px 0 0;padding:0}
.card{background:var(--surface);border:1px solid var(--rule);border-radius:10px;padding:10px 14px;margin:0}
.card dt{color:var(--soft);font-size:13px}
.card dd{margin:0;font-size:21px;line-height:1.3;font-weight:600}
.card dd+dd{font-size:13px;font-weight:400;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px;align-items:start}
.figures+.block,.figures+details{margin-top:16px}
figure{margin:0;background:var(--surface);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;min-width:0}
figure.full{grid-column:1/-1}
figcaption p{font-size:13px;margin:2px 0 8px}
.panel+.panel{margin-top:10px}
.keys{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px;margin:4px 0 2px;align-items:center}
.keys span{display:inline-flex;align-items:center;gap:5px}
.key{display:inline-block;width:16px;height:0;border-top:3px solid var(--tone)}
.key-dashes,.key-dashed-step{border-top-style:dashed}
.key-bars{height:10px;border-top:0;background:var(--tone)}
.key-dots,.key-rings,.key-range{width:9px;height:9px;border-radius:50%;border:0;background:var(--tone)}
.key-rings{background:none;border:2px solid var(--tone)}
svg{display:block;width:100%;height:auto}
svg.narrow{display:none}
svg text{fill:var(--soft);font-size:12px;font-family:inherit}
svg text.ink{fill:var(--ink)}
.grid{stroke:var(--grid);fill:none}.grid.minor{opacity:.5}
.base{stroke:var(--soft);fill:none}
.band{fill:var(--band)}
.hint{fill:transparent}.hint:hover{fill:var(--ink);fill-opacity:.07}
.line{fill:none;stroke:var(--tone);stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.dashes{stroke-dasharray:5 4}
.bars{fill:var(--tone);fill-opacity:.85}
.dots{fill:var(--tone);fill-opacity:.75}
.rings{fill:none;stroke:var(--tone);stroke-width:1.5}
.range{stroke:var(--tone);stroke-width:3;stroke-linecap:round;stroke-opacity:.45;fill:none}
${TONES}.tone-bad{--tone:var(--bad)}.tone-muted{--tone:var(--muted)}
.scroll{overflow-x:auto}.long{max-height:75vh;overflow-y:auto}
.block{background:var(--surface);border:1px solid var(--rule);border-radius:10px;padding:6px 12px;margin:0 0 14px}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;padding:4px 0}
caption span{display:block;color:var(--soft);max-width:calc(100vw - 64px)}
th,td{padding:5px 10px 5px 0;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap;vertical-align:top}
th{color:var(--soft);font-weight:600}
tr>:first-child{text-align:left}
tbody th{color:var(--ink);font-weight:500}
tr>:first-child{position:sticky;left:0;background:var(--surface)}
th.text,td.text{text-align:left;padding-left:12px}td.text{white-space:normal;min-width:180px;max-width:520px}
tbody tr:last-child>*{border-bottom:0}
bdi.name{display:inline-block;max-width:260px;overflow:hidden;text-overflow:ellipsis;vertical-align:bottom;white-space:nowrap}
details{margin-top:8px;font-size:14px}
summary{cursor:pointer;color:var(--soft)}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0 0 12px}
dl.facts dt{color:var(--soft)}dl.facts dd{margin:0}
footer{padding-top:24px;padding-bottom:40px;font-size:13px}
@media ${PHONE}{
.figures{grid-template-columns:minmax(0,1fr)}
figure{padding:12px}
svg.wide{display:none}svg.narrow{display:block;max-width:560px;margin:0 auto}
h1{font-size:22px}
.cards{grid-template-columns:repeat(2,minmax(0,1fr))}
.card dd{font-size:18px}
dl.facts{grid-template-columns:1fr;gap:0}dl.facts dd{margin-bottom:8px}
bdi.name{max-width:160px}
td.text{min-width:220px}
}
@media print{:root{${LIGHT}}.figures{display:block}figure{break-inside:avoid;margin-bottom:12px}.scroll{max-height:none}nav{display:none}}
`.trim();
