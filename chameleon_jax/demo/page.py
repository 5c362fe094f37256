"""Template of the report, which `report.py` fills in."""

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
