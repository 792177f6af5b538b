"""The style sheet of pages: dark text on white, one column with its contents beside it."""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2328; --soft: #545d66; --line: #d8dee4; --accent: #0072b2; --shade: #f6f8fa;
  --pass: #1b6e37; --warn: #8a5200; --fail: #b3261e; --none: #5c636a; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 2rem 1.5rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  "DejaVu Sans", Arial, sans-serif; }
header { border-bottom: 3px solid var(--accent); margin-bottom: 1rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
header p { color: var(--soft); margin: 0 0 .7rem; max-width: none; }
nav { font-size: .94rem; }
nav ol { margin: 0; padding: 0; list-style: none; counter-reset: part; }
nav li { counter-increment: part; padding: .22rem 0 .22rem 1.6rem; position: relative; }
nav li::before { content: counter(part); color: var(--soft); position: absolute; left: 0; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.mark { display: block; font-size: .82rem; line-height: 1.2; }
h2 { font-size: 1.35rem; margin: 0 0 .6rem; padding-top: 1rem; }
section + section { border-top: 1px solid var(--line); margin-top: 1.8rem; }
section:first-child h2 { padding-top: 0; }
.count { color: var(--soft); font-weight: 400; margin-right: .7rem; }
h3 { font-size: 1.08rem; margin: 1.4rem 0 .2rem; }
p { max-width: 50rem; margin: .55rem 0; }
figure { margin: 1.1rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, caption { color: var(--soft); font-size: .9rem; max-width: 50rem; }
figcaption { margin-top: .35rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: .45rem; }
th, td { padding: .34rem 1.1rem .34rem .1rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
td { max-width: 26rem; }
thead th { border-bottom: 2px solid var(--ink); }
th.number, td.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; vertical-align: bottom; }
.prose { min-width: 15rem; overflow-wrap: anywhere; }
.badge, .mark { font-weight: 600; white-space: nowrap; }
.badge { border: 1px solid currentColor; border-radius: .8rem; padding: 0 .55rem;
  font-size: .88em; background: #fff; display: inline-block; }
.pass { color: var(--pass); } .warn { color: var(--warn); }
.fail { color: var(--fail); } .not-available { color: var(--none); }
.callout { border-left: 5px solid currentColor; background: var(--shade); padding: .7rem 1rem;
  font-size: 1.08rem; font-weight: 600; max-width: none; }
.callout .badge { margin-right: .4rem; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0;
  padding: .8rem 1rem; overflow-x: auto; font: .86rem/1.45 ui-monospace, "SF Mono", Menlo,
  "DejaVu Sans Mono", Consolas, monospace; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
.diagram svg { max-width: 100%; height: auto; }
.plate { border: 1.5px solid #6b7681; border-radius: 10px; padding: .55rem .7rem .3rem;
  margin: .45rem 0; display: table; }
.plate .plate { background: transparent; }
.plate > .size { display: block; text-align: right; color: var(--soft); font-size: .84rem;
  padding-left: 2rem; }
.node { display: flex; align-items: baseline; gap: .6rem; margin: .3rem 0; }
.node .name { border: 1.5px solid var(--ink); border-radius: 1rem; padding: .05rem .75rem;
  background: #fff; font-weight: 600; white-space: nowrap; }
.node.observed .name { background: #d0d5da; }
.node.deterministic .name { border-style: dashed; font-weight: 400; }
.node.factor .name { border-radius: 0; }
.node.enumerated .name { border-style: double; border-width: 4px; }
.node .rest { color: var(--soft); font-size: .92rem; }
@media (min-width: 1080px) {
  body { display: grid; grid-template-columns: 13.5rem minmax(0, 1fr); column-gap: 2.2rem; }
  header { grid-column: 1 / -1; }
  nav { position: sticky; top: 1rem; align-self: start; max-height: 95vh; overflow-y: auto; }
}
@media print {
  body { display: block; max-width: none; padding: 0; font-size: 11pt; }
  nav { columns: 2; position: static; }
  .mark { display: inline; padding-left: .4rem; }
  figure, tr, .callout { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; }
  a { color: inherit; }
}
"""
"""Style sheet; the page refers to no fonts, images or scripts from elsewhere."""
