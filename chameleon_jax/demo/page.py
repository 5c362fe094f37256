"""Template and style sheet of the report, which `report.py` fills in."""

CSS = """
:root { --ink: #22302b; --soft: #5d6b64; --paper: #fbfcfa; --card: #ffffff; --line: #e3e8e4; --leaf: #1f7a5c;
  --leaf-soft: #e2f2ea; --amber: #c2571a; --amber-soft: #fbe9dd; --red: #c23b3b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, "Segoe UI", Helvetica, Arial,
  sans-serif; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 56px; }
h1 { font-size: 40px; line-height: 1.15; margin: 0 0 12px; letter-spacing: -0.02em; }
header > p { font-size: 19px; color: var(--soft); max-width: 760px; margin: 0 0 28px; }
h2 { font-size: 24px; margin: 0 0 6px; letter-spacing: -0.01em; }
section { margin: 56px 0; }
section > p { color: var(--soft); max-width: 760px; margin: 0 0 16px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
  display: flex; flex-direction: column; }
.tile b { font-size: 28px; line-height: 1.2; color: var(--leaf); letter-spacing: -0.02em; }
.tile span { font-weight: 600; font-size: 14px; }
.tile small { color: var(--soft); font-size: 12.5px; }
img { image-rendering: auto; border-radius: 4px; background: #fff; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px; margin: 10px 0;
  font-size: 18px; }
.card img.inline { width: 56px; height: 56px; vertical-align: middle; margin: 3px 6px; border: 1px solid var(--line); }
.card.prose { font: 13.5px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; white-space: pre-wrap; }
.given { color: var(--soft); }
.written { background: var(--leaf-soft); border-radius: 5px; padding: 2px 3px; color: var(--ink);
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.strip { display: flex; flex-wrap: wrap; gap: 3px; margin-top: 12px; }
.strip i { font: 12.5px/1.3 ui-monospace, Menlo, Consolas, monospace; font-style: normal; padding: 4px 6px;
  border-radius: 5px; }
.strip .text { background: var(--leaf-soft); color: var(--leaf); }
.strip .image { background: var(--amber-soft); color: var(--amber); }
.strip .special { background: #eceeec; color: var(--soft); }
.count { font-size: 14px; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 10px; }
.answers figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px;
  text-align: center; }
.answers img { width: 46px; height: 46px; margin: 0 2px; }
.answers figcaption { font-size: 12.5px; line-height: 1.3; color: var(--soft); }
.answers .wrong { border-color: var(--red); background: #fdf3f3; }
.answers .wrong figcaption { color: var(--red); }
.drawings { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; }
.drawings .row { display: flex; align-items: center; gap: 3px; min-width: 960px; }
.drawings .row span { width: 56px; font-size: 13px; color: var(--soft); }
.drawings img { width: 42px; height: 42px; border: 2px solid transparent; }
.drawings img.bad { border-color: var(--red); }
.pairs { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; margin-bottom: 18px; }
.pairs div { display: flex; gap: 4px; min-width: 980px; margin: 6px 0; }
.pairs img { width: 46px; height: 46px; }
svg { width: 100%; height: auto; display: block; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 18px 0; }
th { text-align: left; font-weight: 600; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
footer { color: var(--soft); font-size: 13.5px; padding-bottom: 48px; }
@media (max-width: 760px) { .tiles { grid-template-columns: repeat(2, 1fr); } h1 { font-size: 30px; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A Chameleon, trained here</title>
<style>{css}</style>
</head>
<body>
<header>
<h1>A Chameleon, trained here</h1>
<p>One Transformer reads and writes documents of text and pictures in any order, because to it both are tokens of one
vocabulary. Minutes ago it knew nothing. It has learnt from {digits}
handwritten digits, Python’s reference manual and a little source code, on this machine alone.</p>
{tiles}
</header>
<main>
<section><h2>One stream of tokens</h2>
<p>An image tokenizer turns each picture into a few codes, a text tokenizer turns words into pieces, and a document
becomes one line of both. The model predicts the next token, whatever it is. What the model wrote is
<span class="written">marked</span>.</p>
<div class="card">{example}</div>{strip}</section>
<section><h2>It reads pictures</h2><p>Captions of handwriting it never saw.</p>{captions}</section>
<section><h2>It draws</h2>
<p>Asked for “A handwritten three.” and so on, it writes image codes, steered by classifier-free guidance
{guidance}. Every drawing was shown to a judge, a support vector machine that has only seen real digits
(right on {judge} of real test digits). Failures are framed in red.</p>{drawings}
<p class="count">Are they copies? {copied} of the drawings lie as near to some training picture, moved by
up to two pixels, as a picture typically lies to its own reconstruction; of real pictures it never saw,
{as_near} do.</p>
</section>
<section><h2>It answers questions</h2>{questions}</section>
<section><h2>It adds what it sees</h2>{sums}</section>
<section><h2>It continues documents</h2>
<p>Given the grey part, it goes on with text and pictures as it likes.</p>{interleaved}</section>
<section><h2>It writes</h2><p>Prose and code from files it never saw, continued. On all held-out text: {bits}.</p>
{prose}</section>
<section><h2>How pictures become codes</h2>
<p>Test pictures, and below each what is left of it after going through its codes.</p>{reconstructions}
{code_use}{tokenizer_curve}</section>
<section><h2>How it learnt</h2>{loss_curves}{stages}{config}</section>
<section><h2>All figures</h2>{metrics}</section>
</main>
<footer>Written by <code>chameleon demo</code>. Run it again and finished stages are reused.</footer>
</body>
</html>
"""
