"""The template of report.html."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.model }} on {{ report.engine }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.sum td { border-top: 1px solid #999; font-weight: 600; }
.how { color: #666; } .bad { color: #b00; font-weight: 600; } .wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{ report.model }} on engine {{ report.engine }}</h1>
<p>{{ summary }}</p>

<table>
<tr><th>figure</th><th class="n">value</th><th>how it is known</th></tr>
{% for row in headline %}<tr><td>{{ row.name }}</td><td class="n{{ ' bad' if row.bad }}">{{ row.value }}</td>
<td class="how">{{ row.how }}</td></tr>
{% endfor %}</table>
<p class="how">Nothing here was placed, routed or run on a board: the clock of {{ report.clock_mhz }} MHz is a statement of
the configuration, and LUTs are those of open synthesis.</p>

{% if cycles %}<h2>Where the cycles go</h2>
<p>{{ cycles_from }}</p>
<div class="wide">{{ cycles }}</div>
<div class="wide"><table>
<tr><th>layer</th><th>operator</th><th class="n">MACs</th><th class="n">cycles</th><th class="n">use of the array</th>
<th>limited by</th>{% if reasons %}<th>lost to, % of its cycles</th>{% endif %}</tr>
{% for layer in report.layers %}<tr><td>{{ layer.name }}</td><td>{{ layer.op }}</td>
<td class="n">{{ "{:,}".format(layer.macs) }}</td><td class="n">{{ "{:,.0f}".format(layer.cycles) }}</td>
<td class="n">{{ "{:.1f} %".format(100 * layer.utilization) }}</td><td>{{ layer.limit }}</td>
{% if reasons %}<td>{{ largest(layer.lost, layer.cycles) }}</td>{% endif %}</tr>
{% endfor %}</table></div>
{% if reasons %}<p>Cycles in which lanes had no useful work, by the cycle model; its reasons are:</p>
<table>{% for name, meaning in reasons.items() %}<tr><td>{{ name }}</td><td>{{ meaning }}</td></tr>
{% endfor %}</table>{% endif %}{% endif %}

{% if resources %}<h2>What the engine is made of</h2>
<p>Yosys, <code>synth_xilinx -family xcup</code>, each block by itself, DSP inference left on.
A CARRY8 is eight bits of carry; BRAMs are 36 Kb. Pairs are LUTs that could share a LUT6_2, estimated.</p>
<div class="wide">{{ resources }}</div>
<div class="wide"><table>
<tr><th>block</th>{% for column in columns %}<th class="n">{{ column }}</th>{% endfor %}</tr>
{% for name, block in blocks %}<tr{{ ' class="sum"' | safe if loop.last }}><td>{{ name }}</td>
{% for column in columns %}<td class="n">{{ "{:,.10g}".format(block[column]) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}

{% if weights %}<h2>Weights and the levels of their formats</h2>
<p>In steps of each output channel's scale. The lines are the levels that the format has: that is where the hardware's
shifts and adds can go.</p>
<div class="wide">{{ weights }}</div>{% endif %}
</body>
</html>
"""
