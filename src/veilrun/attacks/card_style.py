"""The look of a card's page: light and dark, one column on a phone, nothing from elsewhere."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --sheet: #ffffff; --ink: #20262e; --soft: #5d6672; --line: #e3e0d8;
  --track: #ece9e1; --open: #b23f2c; --partial: #a36a0c; --held: #2c7a58; --unknown: #5d6672;
  --open-wash: #fbeeea; --partial-wash: #faf2e0; --held-wash: #e9f4ee; --unknown-wash: #f0efeb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #13161a; --sheet: #1a1e24; --ink: #e7e5df; --soft: #9aa3ae; --line: #2b313a;
    --track: #2a3038; --open: #e98570; --partial: #dcaa55; --held: #6cc39b; --unknown: #9aa3ae;
    --open-wash: #2a1d1b; --partial-wash: #29231a; --held-wash: #18261f; --unknown-wash: #1f242b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 68rem; margin: 0 auto; padding: 3.5rem 2rem 4rem; }
p, h1, h2, h3, ol, ul, dl, dd { margin: 0; padding: 0; }
ol, ul { list-style: none; }
h1, h2, .headline, .share {
  font-family: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, serif; font-weight: 600;
}
h1 { font-size: 2.4rem; line-height: 1.15; letter-spacing: -0.01em; margin: 0.3rem 0 0.5rem; }
h2 { font-size: 1.45rem; line-height: 1.25; margin: 3.5rem 0 0.4rem; }
h3 { font-size: 1rem; font-weight: 600; line-height: 1.35; }
.eyebrow {
  color: var(--soft); font-size: 0.78rem; letter-spacing: 0.09em; text-transform: uppercase;
}
.soft { color: var(--soft); font-size: 0.88rem; line-height: 1.5; }
h2 + .soft { margin-bottom: 1.2rem; max-width: 46rem; }
h2 + .sheet { margin-top: 1rem; }
.verdict {
  margin-top: 2rem; padding: 1.5rem 1.75rem; border-radius: 12px;
  border-left: 5px solid var(--tone); background: var(--wash);
}
.headline { font-size: 1.5rem; line-height: 1.3; color: var(--tone); margin-bottom: 0.5rem; }
.open { --tone: var(--open); --wash: var(--open-wash); }
.partial { --tone: var(--partial); --wash: var(--partial-wash); }
.held { --tone: var(--held); --wash: var(--held-wash); }
.unknown { --tone: var(--unknown); --wash: var(--unknown-wash); }
.sheet {
  background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
}
.levels li {
  display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 0.4rem 2.5rem;
  padding: 1.2rem 1.5rem; align-items: center;
}
.levels li + li { border-top: 1px solid var(--line); }
.reads { display: grid; grid-template-columns: 5.6rem minmax(0, 1fr); gap: 0.1rem 1rem;
  align-items: center; }
.share { font-size: 1.55rem; line-height: 1.2; color: var(--tone); white-space: nowrap; }
.reads .soft { grid-column: 2; }
.bar { display: block; width: 100%; height: 12px; border-radius: 6px; background: var(--track); }
.bar .part { fill: var(--tone); }
.bar .span { fill: var(--tone); opacity: 0.4; }
.bar .guess { fill: var(--ink); opacity: 0.55; }
table { width: 100%; border-collapse: collapse; font-size: 0.86rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: 0.6rem 0.55rem; font-weight: inherit; }
th:first-child, td:first-child { padding-left: 1.5rem; }
th:last-child, td:last-child { padding-right: 1.5rem; }
thead th { color: var(--soft); font-size: 0.76rem; letter-spacing: 0.02em; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--line); }
tbody .group th {
  padding-top: 1.1rem; padding-bottom: 0.5rem; font-weight: 600; background: var(--unknown-wash);
}
.attack { font-weight: 600; min-width: 9rem; }
.tokens strong { color: var(--tone); }
.tokens .bar { height: 5px; margin: 0.3rem 0 0.2rem; min-width: 5.5rem; }
.tokens small, .control small { color: var(--soft); display: block; }
.number { white-space: nowrap; }
.pairs { padding: 0.4rem 1.5rem; }
.pairs > div {
  display: grid; grid-template-columns: minmax(0, 15rem) minmax(0, 1fr); gap: 0.15rem 2rem;
  padding: 0.8rem 0;
}
.pairs > div + div { border-top: 1px solid var(--line); }
dt { font-weight: 600; }
dd .soft { display: block; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.88rem; }
@media (max-width: 62rem) {
  main { padding: 2rem 1.1rem 3rem; }
  h1 { font-size: 1.9rem; }
  h2 { font-size: 1.3rem; margin-top: 2.6rem; }
  .verdict { padding: 1.1rem 1.2rem; margin-top: 1.5rem; }
  .headline { font-size: 1.28rem; }
  .levels li { grid-template-columns: minmax(0, 1fr); padding: 1.1rem 1.1rem; gap: 0.7rem; }
  .reads { grid-template-columns: 5.2rem minmax(0, 1fr); gap: 0.25rem 0.8rem; }
  .pairs { padding: 0.3rem 1.1rem; }
  .pairs > div { grid-template-columns: minmax(0, 1fr); }
  table, tbody, tr, th, td { display: block; width: 100%; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tbody tr { padding: 0.9rem 1.1rem; }
  tbody .group { padding: 0; }
  tbody .group th, tbody .group th:first-child { padding: 0.8rem 1.1rem; }
  td, td:first-child, td:last-child, .attack:first-child { padding: 0.12rem 0; }
  td { display: grid; grid-template-columns: 6.6rem minmax(0, 1fr); gap: 0.8rem; }
  td::before { content: attr(data-label); color: var(--soft); }
  td.empty { display: none; }
  .attack { font-size: 0.98rem; min-width: 0; }
  .number { white-space: normal; }
}
"""
