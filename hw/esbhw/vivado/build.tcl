# Step 3: synthesis, implementation, reports, bitstream. Whether they are good enough is decided by esbflow, which reads them.
source [file join [file dirname [file normalize [info script]]] settings.tcl]

open_project [file join $esb(work) overlay overlay.xpr]
# Adders of three rows survive area-driven synthesis; no multiplication may end in a DSP block.
set_property strategy Flow_AreaOptimized_high [get_runs synth_1]
set_property STEPS.SYNTH_DESIGN.ARGS.MAX_DSP 0 [get_runs synth_1]
set_property strategy Performance_ExploreWithRemap [get_runs impl_1]

proc run {name args} {
    launch_runs $name {*}$args
    # No time limit: one that is too short cuts off a large build.
    wait_on_run $name
    if {[get_property PROGRESS [get_runs $name]] ne "100%"} {
        error "esbflow: $name failed ([get_property STATUS [get_runs $name]]); see its runme.log"
    }
}
run synth_1 -jobs $esb(jobs)
run impl_1 -to_step write_bitstream -jobs $esb(jobs)

open_run impl_1
file mkdir $esb(reports)
report_timing_summary -max_paths 10 -file [file join $esb(reports) timing.rpt]
report_utilization -file [file join $esb(reports) utilization.rpt]
report_utilization -hierarchical -file [file join $esb(reports) hierarchy.rpt]
report_methodology -file [file join $esb(reports) methodology.rpt]
report_cdc -file [file join $esb(reports) cdc.rpt]
if {[file exists [file join $esb(here) activity.saif]]} {
    read_saif -strip_path $esb(saif_scope) [file join $esb(here) activity.saif]
}
report_power -file [file join $esb(reports) power.rpt]

# Vivado can return without an error and without a bitstream. The handoff moved from .srcs to .gen with version 2020.2.
proc one {what pattern_list} {
    foreach pattern $pattern_list {
        set found [glob -nocomplain $pattern]
        if {[llength $found] == 1} {
            return [lindex $found 0]
        }
    }
    error "esbflow: the build gave no $what"
}
set project [file join $esb(work) overlay]
file copy -force [one bitstream [list [file join $project overlay.runs impl_1 *.bit]]] [file join $esb(work) $esb(stem).bit]
set handoff {}
foreach place {gen srcs} {
    lappend handoff [file join $project overlay.$place sources_1 bd $esb(design) hw_handoff *.hwh]
}
file copy -force [one handoff $handoff] [file join $esb(work) $esb(stem).hwh]
close_project
puts "esbflow: built $esb(stem).bit with Vivado [version -short]"
