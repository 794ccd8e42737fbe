"""The frame of `evaluate`'s report: one page, nothing loaded from elsewhere."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>synthdet: did the synthetic pictures help?</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2733; background: #f6f8fa; margin: 0; }
main { max-width: 980px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 15px; font-weight: 600; color: #5b6b7a; margin: 0 0 12px; }
h2 { font-size: 20px; margin: 40px 0 4px; }
h3 { font-size: 15px; font-weight: 600; margin: 20px 0 6px; }
p { margin: 4px 0 12px; }
.verdict { background: #fff; border-left: 8px solid #7b8794; border-radius: 6px; padding: 20px 24px;
  font-size: 21px; line-height: 1.45; box-shadow: 0 1px 3px #0002; }
.verdict.gain { border-color: #1a7f4b; }
.verdict.loss { border-color: #c0392b; }
.plot { width: 100%; box-sizing: border-box; padding: 14px; background: #fff; border-radius: 6px; margin: 24px 0 0;
  box-shadow: 0 1px 3px #0002; }
table { border-collapse: collapse; background: #fff; width: 100%; font-size: 15px; border-radius: 6px;
  box-shadow: 0 1px 3px #0002; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px; border-bottom: 1px solid #e8ecf0; font-weight: 400; }
th { color: #5b6b7a; }
tr:last-child > * { border-bottom: 0; }
table + table { margin-top: 16px; }
.strip { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; }
figure img { height: 144px; border-radius: 4px; display: block; }
figcaption { font-size: 11px; color: #5b6b7a; max-width: 144px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
</style>
</head>
<body><main>
<h1>Did the synthetic pictures help? — synthdet evaluate</h1>
<div class="verdict $kind_class" data-verdict="$kind">$sentence</div>
$plot
<h2>Measures</h2>
<p>Means over the seeds, on real test pictures alone. mAP is COCO's; precision, recall, F1, counts and false alarms are at
the confidence that was best on the real val pictures. The interval allows for other seeds and for other groups of test
photos.</p>
$measures
$parts
$sweeps
$curves
$failures
<h2>What was compared</h2>
$facts
$examples
<h2>Settings and versions</h2>
$settings
</main></body>
</html>
""")
