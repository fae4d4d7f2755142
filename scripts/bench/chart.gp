# The chart of the benchmark: eight panels, with a bar for each server. `data` is a file with a line for each
# server: name, and numbers of the panels; `chart` is the SVG file.
set terminal svg size 960,600 font "sans-serif,12" background "#ffffff"
set output chart
set multiplot layout 2,4
set style fill solid noborder
set boxwidth 0.7
set border 1
set xtics nomirror scale 0 rotate by -30
unset ytics
unset key
set yrange [0:*]
set offsets 0.2, 0.2, graph 0.12, 0
array titles[8] = ["CPU per request, µs\nkeep-alive, 1 connection", "CPU per request, µs\nkeep-alive, 64 connections", \
    "CPU per request, µs\nclose, 64 connections", "p99, ms\nkeep-alive, 64 connections", \
    "p99, ms\n10,000/s beside busy loops", "% of the busy loops' work lost\nto 10,000/s", \
    "1,000 requests/s\nkeep-alive, 64 connections", "memory, MB\n1,000 idle connections"]
array colors[4] = [0x1b7837, 0x4575b4, 0x74add1, 0xbababa]
do for [panel = 1:8] {
    set title titles[panel]
    plot data using 0:(column(panel + 1)):(colors[int($0) + 1]):xtic(1) with boxes linecolor rgb variable, \
        data using 0:(column(panel + 1)):(sprintf("%.3g", column(panel + 1))) with labels offset 0,0.7
}
unset multiplot
