# A recording model of the Vivado commands that the steps use. It knows each kind of object's properties, keeps what was made,
# and refuses what Vivado would: use before creation, an unknown property, an unconnected clock, an unaligned or overlapping
# address, a bus interface without all its ports, a register without a description. It builds nothing.
#     tclsh model.tcl STEP.tcl     MODEL_FAULT names a fault to play: timing, dsp, synth, licence, nobit, hwh
namespace eval model {
    variable objects {}
    variable properties {}
    variable log {}
    variable repositories {}
    variable catalogue {}
    variable project {}
    variable given {}
    variable nets {}
    variable excluded {}
    variable core {}
    variable fault ""
    if {[info exists ::env(MODEL_FAULT)]} { set fault $::env(MODEL_FAULT) }
    # What properties each kind has; a pattern where the names are open.
    variable known {
        project {board_part ip_repo_paths directory part name target_language}
        fileset {top}
        file {PROCESSING_ORDER USED_IN}
        core {name version display_name description core_revision ipi_drc vendor library}
        bus {slave_memory_map_ref name}
        busparameter {value name}
        map {name}
        block {name base_address range width usage}
        register {name address_offset size access description}
        field {name bit_offset bit_width access description}
        space {name}
        coresegment {name}
        userparameter {value value_resolve_type value_format name}
        cell {CONFIG.* NAME VLNV}
        run {strategy STEPS.SYNTH_DESIGN.ARGS.MAX_DSP STEPS.SYNTH_DESIGN.ARGS.* STEPS.*.IS_ENABLED PROGRESS STATUS}
    }
    variable strategies {
        Flow_PerfOptimized_high Flow_AreaOptimized_high "Vivado Synthesis Defaults" Performance_Explore
        Performance_ExploreWithRemap Performance_ExtraTimingOpt Congestion_SpreadLogic_high "Vivado Implementation Defaults"
    }
    # Cores of the catalogue: versions; bus interfaces {name mode clock}; pins {name direction}; settings.
    variable cores
    array set cores {
        zynq_ultra_ps_e {versions {3.3 3.5}}
        processing_system7 {versions {5.5}}
        proc_sys_reset {versions {5.0} buses {} pins {slowest_sync_clk clock ext_reset_in in interconnect_aresetn out
            peripheral_aresetn out} settings {C_EXT_RST_WIDTH}}
        smartconnect {versions {1.0} pins {aclk clock aresetn reset} settings {NUM_SI NUM_MI NUM_CLKS}}
        axi_intc {versions {4.1} buses {s_axi {slave 32 AXI4LITE s_axi_aclk}} pins {s_axi_aclk clock s_axi_aresetn reset
            intr in irq out} settings {C_IRQ_CONNECTION C_KIND_OF_INTR}}
        axi_dma {versions {7.1} buses {S_AXI_LITE {slave 32 AXI4LITE s_axi_lite_aclk}} pins {s_axi_lite_aclk clock
            axi_resetn reset} settings {c_include_sg c_sg_length_width}}
    }
}
proc model::fail {text} { error "ERROR: \[Model\] $text" }
proc model::record {args} { variable log; lappend log $args }
proc model::make {kind name {values {}}} {
    variable objects; variable properties
    set handle "$kind|$name"
    if {[dict exists $objects $handle]} { fail "$kind $name exists already" }
    dict set objects $handle 1
    dict set properties $handle [dict merge [dict create name $name] $values]
    return $handle
}
proc model::kind {handle} { return [lindex [split $handle |] 0] }
proc model::label {handle} { return [join [lrange [split $handle |] 1 end] |] }
proc model::must {handle} {
    variable objects
    if {$handle eq ""} { fail "no object was given" }
    foreach one $handle { if {![dict exists $objects $one]} { fail "there is no object $one" } }
    return $handle
}
proc model::all {kind {prefix ""}} {
    variable objects
    set found {}
    foreach handle [dict keys $objects] {
        if {[kind $handle] eq $kind && [string match "$prefix*" [label $handle]]} { lappend found $handle }
    }
    return $found
}
proc model::get {handle name} { variable properties; return [dict get $properties $handle $name] }
proc model::has {handle name} { variable properties; return [dict exists $properties $handle $name] }
proc model::put {handle name value} { variable properties; dict set properties $handle $name $value }
proc model::option {arguments name {default ""}} {
    set at [lsearch -exact $arguments $name]
    return [expr {$at < 0 ? $default : [lindex $arguments [expr {$at + 1}]]}]
}
proc model::rest {arguments valued {flags {}}} {
    set left {}
    for {set i 0} {$i < [llength $arguments]} {incr i} {
        set word [lindex $arguments $i]
        if {$word in $valued} { incr i; continue }
        if {$word in $flags} { continue }
        if {[string match -* $word]} { fail "unknown option $word" }
        lappend left $word
    }
    return $left
}

# -- properties ---------------------------------------------------------------------------------------------------------
proc set_property {args} {
    model::record set_property {*}$args
    if {[lindex $args 0] eq "-dict"} {
        lassign [lrange $args 1 end] pairs target
    } else {
        set pairs [lrange $args 0 1]
        set target [lindex $args 2]
    }
    foreach one [model::must $target] {
        foreach {name value} $pairs { model::set_one $name $value $one }
    }
}
proc model::set_one {name value handle} {
    variable known; variable strategies
    set allowed [dict get $known [kind $handle]]
    if {![llength [lsearch -all -inline -nocase $allowed $name]]} {
        set open [lsearch -all -inline $allowed "*\\**"]
        set fits 0
        foreach pattern $open { if {[string match $pattern $name]} { set fits 1 } }
        if {!$fits} { fail "a [kind $handle] has no property $name" }
    }
    if {$name eq "strategy" && $value ni $strategies} { fail "there is no strategy $value" }
    if {[kind $handle] eq "cell"} {
        set name [string range $name 7 end]
        if {$name ni [get $handle settings]} { fail "[get $handle vlnv] has no parameter $name" }
        put $handle config [dict merge [get $handle config] [dict create $name $value]]
        return
    }
    if {$name eq "board_part" && $value ni [get_board_parts *]} { fail "there is no board $value" }
    put $handle $name $value
}
proc get_property {name handle} {
    model::must $handle
    if {![model::has $handle $name]} { model::fail "[model::kind $handle] has no property $name" }
    return [model::get $handle $name]
}

# -- projects -----------------------------------------------------------------------------------------------------------
proc version {args} { return 2099.1 }
proc get_parts {pattern} {
    if {$model::fault eq "part"} { return {} }
    return [expr {[string match xc* $pattern] ? [list $pattern] : {}}]
}
proc get_board_parts {args} {
    set found {}
    foreach part {xilinx.com:zcu102:part0:3.3 xilinx.com:zcu102:part0:3.4 xilinx.com:zcu104:part0:1.1
        tul.com.tw:pynq-z2:part0:1.0} {
        if {[string match [lindex $args end] $part]} { lappend found $part }
    }
    return $found
}
proc create_project {args} {
    model::record create_project {*}$args
    set left [model::rest $args {-part} {-force}]
    lassign $left name folder
    if {$model::project ne ""} { model::fail "a project is open" }
    if {[option_part $args] eq ""} { model::fail "no part" }
    file mkdir $folder
    close [open [file join $folder $name.xpr] w]
    set model::project [model::make project $name [list directory $folder]]
    model::make fileset sources_1 {files {} top ""}
    model::make fileset constrs_1 {files {}}
    return $model::project
}
proc option_part {arguments} { return [model::option $arguments -part] }
proc open_project {path} {
    if {![file exists $path]} { model::fail "there is no project $path" }
    if {![file exists [file join [file dirname $path] validated.model]]} { model::fail "the design was not validated" }
    set model::project [model::make project [file rootname [file tail $path]] [list directory [file dirname $path]]]
    model::make run synth_1 {PROGRESS 0% STATUS "Not started"}
    model::make run impl_1 {PROGRESS 0% STATUS "Not started"}
}
proc close_project {} {
    if {$model::project eq ""} { model::fail "no project is open" }
    set model::project ""
    set model::objects {}
}
proc current_project {} { return [model::must $model::project] }
proc current_fileset {} { return [model::must fileset|sources_1] }
proc add_files {args} {
    model::rest $args {-fileset} {-norecurse}
    set set [model::must "fileset|[model::option $args -fileset sources_1]"]
    foreach file [lindex $args end] {
        if {![file exists $file]} { model::fail "there is no file $file" }
        model::put $set files [concat [model::get $set files] [list $file]]
        model::make file [file tail $file]
    }
}
proc update_compile_order {args} { model::rest $args {-fileset} }
proc get_files {name} {
    foreach handle [model::all file] { if {[model::label $handle] eq $name} { return $handle } }
    foreach handle [model::all design] { if {"[model::label $handle].bd" eq $name} { return $handle } }
    model::fail "the project has no file $name"
}
proc generate_target {what file} { model::must $file }
proc make_wrapper {args} {
    set design [model::must [model::option $args -files]]
    set path [file join [model::get $model::project directory] [model::label $design]_wrapper.v]
    close [open $path w]
    return $path
}

# -- the packager -------------------------------------------------------------------------------------------------------
namespace eval ipx {}
proc ipx::package_project {args} {
    model::record package_project {*}$args
    model::rest $args {-root_dir -vendor -library -taxonomy -set_current} {-import_files -force}
    set top [model::get fileset|sources_1 top]
    set files [model::get fileset|sources_1 files]
    if {$top eq "" || $files eq ""} { model::fail "no top or no files" }
    set text ""
    foreach file $files { set in [open $file]; append text [read $in]; close $in }
    if {![regexp "\\nmodule ${top}\\(" $text]} { model::fail "the files have no module $top" }
    set model::core [model::make core $top [list root [model::option $args -root_dir] \
        vendor [model::option $args -vendor] library [model::option $args -library]]]
    # Interfaces by their attributes, as the packager infers them.
    foreach {- kind bus pin} [regexp -all -inline {X_INTERFACE_INFO = "(\S+) (\S+) (\S+)"} $text] {
        if {![dict exists $model::objects "bus|$bus"]} { model::make bus $bus [list kind $kind pins {} clock ""] }
        model::put bus|$bus pins [concat [model::get bus|$bus pins] [list $pin]]
    }
    foreach {- bus} [regexp -all -inline {XIL_INTERFACENAME (m_axi\w+),} $text] {
        model::make space $bus
        model::make coresegment $bus/APERTURE_0
    }
    model::make map s_axi
}
proc ipx::current_core {} { return [model::must $model::core] }
proc ipx::get_bus_interfaces {name args} {
    model::must [model::option $args -of_objects]
    return [expr {[dict exists $model::objects "bus|$name"] ? "bus|$name" : {}}]
}
proc ipx::associate_bus_interfaces {args} {
    model::must [lindex $args end]
    foreach name [list [model::option $args -busif] [model::option $args -clock] [model::option $args -reset]] {
        if {$name ne ""} { model::must "bus|$name" }
    }
    set bus [model::option $args -busif [model::option $args -clock]]
    model::put bus|$bus clock [model::option $args -clock]
    if {[model::option $args -reset] ne ""} { model::put bus|$bus reset [model::option $args -reset] }
}
proc ipx::get_bus_parameters {name args} {
    set handle "busparameter|[model::label [model::must [model::option $args -of_objects]]]/$name"
    return [expr {[dict exists $model::objects $handle] ? $handle : {}}]
}
proc ipx::add_bus_parameter {name bus} { return [model::make busparameter [model::label [model::must $bus]]/$name] }
proc ipx::get_memory_maps {args} { return [model::all map] }
proc ipx::remove_memory_map {name core} { dict unset model::objects [model::must "map|$name"] }
proc ipx::add_memory_map {name core} { model::must $core; return [model::make map $name] }
proc ipx::add_address_block {name map} { model::must $map; return [model::make block $name] }
proc ipx::add_register {name block} { model::must $block; return [model::make register $name] }
proc ipx::add_field {name register} { return [model::make field [model::label [model::must $register]].$name] }
proc ipx::get_address_spaces {args} { return [model::all space] }
proc ipx::get_segments {args} {
    set space [model::label [model::must [model::option $args -of_objects]]]
    set found {}
    foreach handle [model::all coresegment $space/] {
        model::put $handle name [lindex [split [model::label $handle] /] 1]
        lappend found $handle
    }
    return $found
}
proc ipx::remove_segment {name space} { dict unset model::objects [model::must "coresegment|[model::label $space]/$name"] }
proc ipx::add_user_parameter {name core} { model::must $core; return [model::make userparameter $name] }
proc ipx::create_xgui_files {core} { model::must $core }
proc ipx::update_checksums {core} { model::must $core }
proc ipx::check_integrity {args} {
    set needed(read) {ARADDR ARLEN ARVALID ARREADY RDATA RRESP RLAST RVALID RREADY}
    set needed(write) {AWADDR AWLEN AWVALID AWREADY WDATA WSTRB WLAST WVALID WREADY BRESP BVALID BREADY}
    set needed(lite) {AWADDR AWVALID AWREADY WDATA WSTRB WVALID WREADY BRESP BVALID BREADY ARADDR ARVALID ARREADY RDATA RRESP
        RVALID RREADY}
    foreach bus [model::all bus] {
        set pins [model::get $bus pins]
        if {![string match *aximm* [model::get $bus kind]]} { continue }
        if {[model::get $bus clock] eq ""} { model::fail "interface [model::label $bus] has no clock" }
        set sets [expr {[model::label $bus] eq "s_axi" ? "lite" : ""}]
        if {$sets eq ""} {
            if {"ARADDR" in $pins} { lappend sets read }
            if {"AWADDR" in $pins} { lappend sets write }
        }
        foreach one $sets {
            foreach pin $needed($one) {
                if {$pin ni $pins} { model::fail "interface [model::label $bus] has no port for $pin" }
            }
        }
    }
    foreach kind {register field} {
        foreach handle [model::all $kind] {
            foreach name [expr {$kind eq "register" ? {address_offset size access description} :
                {bit_offset bit_width access description}}] {
                if {![model::has $handle $name]} { model::fail "$kind [model::label $handle] has no $name" }
            }
        }
    }
    set blocks [model::all block]
    if {[llength $blocks] != 1} { model::fail "the core has [llength $blocks] address blocks" }
    set range [model::get [lindex $blocks 0] range]
    if {$range < 4096 || ($range & ($range - 1))} { model::fail "an address block of $range bytes" }
    set ::model_checked 1
}
proc ipx::save_core {core} {
    if {![info exists ::model_checked]} { model::fail "the core was not checked" }
    set root [model::get $core root]
    file mkdir $root
    set buses {}
    foreach bus [model::all bus] { lappend buses [model::label $bus] [model::get $bus pins] }
    set name [model::get $core name]
    set out [open [file join $root component.model] w]
    puts $out [dict create vlnv "[model::get $core vendor]:[model::get $core library]:$name:[model::get $core version]" \
        name $name buses $buses range [model::get [lindex [model::all block] 0] range] \
        segments [llength [model::all coresegment]] parameters [llength [model::all userparameter]] \
        registers [llength [model::all register]]]
    close $out
}

# -- block designs ------------------------------------------------------------------------------------------------------
proc update_ip_catalog {args} {
    model::rest $args {} {-rebuild}
    foreach folder [model::get $model::project ip_repo_paths] {
        set path [file join $folder component.model]
        if {![file exists $path]} { model::fail "there is no core in $folder" }
        set in [open $path]
        dict set model::catalogue [dict get [set found [read $in]] vlnv] $found
        close $in
    }
}
proc get_ipdefs {args} {
    set filter [model::option $args -filter]
    if {![regexp {^VLNV =~ (\S+)$} $filter - pattern]} { model::fail "filter $filter" }
    set found {}
    foreach {name entry} [array get model::cores] {
        foreach version [dict get $entry versions] {
            if {[string match $pattern "xilinx.com:ip:$name:$version"]} { lappend found "xilinx.com:ip:$name:$version" }
        }
    }
    foreach vlnv [dict keys $model::catalogue] { if {[string match $pattern $vlnv]} { lappend found $vlnv } }
    return $found
}
proc create_bd_design {name} {
    model::must $model::project
    return [model::make design $name]
}
proc create_bd_cell {args} {
    model::record create_bd_cell {*}$args
    set name [lindex [model::rest $args {-type -vlnv}] 0]
    if {![llength [model::all design]]} { model::fail "no block design is open" }
    set vlnv [model::option $args -vlnv]
    set kind [lindex [split $vlnv :] 2]
    if {[dict exists $model::catalogue $vlnv]} {
        set settings {}
    } elseif {[info exists model::cores($kind)] && ([llength [split $vlnv :]] == 3
              || [lindex [split $vlnv :] 3] in [dict get $model::cores($kind) versions])} {
        set entry $model::cores($kind)
        set settings [expr {[dict exists $entry settings] ? [dict get $entry settings] : [model::ps_settings $kind]}]
    } else {
        model::fail "the catalogue has no $vlnv"
    }
    return [model::make cell $name [list vlnv $vlnv kind $kind settings $settings config {}]]
}
proc model::ps_settings {kind} {
    if {$kind eq "processing_system7"} {
        set found {PCW_USE_M_AXI_GP0 PCW_USE_M_AXI_GP1 PCW_USE_FABRIC_INTERRUPT PCW_IRQ_F2P_INTR PCW_EN_CLK0_PORT
            PCW_EN_RST0_PORT PCW_FPGA0_PERIPHERAL_FREQMHZ PCW_EN_CLK1_PORT PCW_FPGA_FCLK1_ENABLE PCW_FPGA1_PERIPHERAL_FREQMHZ}
        for {set i 0} {$i < 4} {incr i} { lappend found PCW_USE_S_AXI_HP$i PCW_S_AXI_HP${i}_DATA_WIDTH }
        return $found
    }
    set found {PSU__USE__IRQ0 PSU__USE__IRQ1 PSU__FPGA_PL0_ENABLE PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ
        PSU__FPGA_PL1_ENABLE PSU__CRL_APB__PL1_REF_CTRL__FREQMHZ}
    for {set i 0} {$i < 7} {incr i} { lappend found PSU__USE__S_AXI_GP$i PSU__SAXIGP${i}__DATA_WIDTH }
    for {set i 0} {$i < 3} {incr i} { lappend found PSU__USE__M_AXI_GP$i PSU__MAXIGP${i}__DATA_WIDTH }
    return $found
}
proc get_bd_cells {name} { return [model::must "cell|[string trimleft $name /]"] }
proc apply_bd_automation {args} {
    set rule [model::option $args -rule]
    set cell [model::must [lindex $args end]]
    if {![string match "xilinx.com:bd_rule:*" $rule]} { model::fail "there is no rule $rule" }
    if {[dict exists [model::option $args -config] apply_board_preset] && [model::get $cell kind] eq "zynq_ultra_ps_e"} {
        model::put $cell config {PSU__USE__M_AXI_GP0 1 PSU__USE__M_AXI_GP1 1 PSU__FPGA_PL0_ENABLE 1}
    }
}
# {bus {mode bits protocol clock}} and {pin direction} of a cell as it is configured now.
proc model::faces {cell} {
    variable cores; variable catalogue
    set kind [get $cell kind]; set config [get $cell config]
    set buses {}; set pins {}
    set value {{config name {default 0}} { expr {[dict exists $config $name] ? [dict get $config $name] : $default} }}
    switch $kind {
        zynq_ultra_ps_e {
            foreach {n name} {0 M_AXI_HPM0_FPD 1 M_AXI_HPM1_FPD 2 M_AXI_HPM0_LPD} {
                if {[apply $value $config PSU__USE__M_AXI_GP$n]} {
                    set clock [string map {m_axi_ maxi} [string tolower ${name}]]_aclk
                    dict set buses $name [list master 32 AXI4 $clock]
                    dict set pins $clock clock
                }
            }
            foreach {n name} {0 S_AXI_HPC0_FPD 1 S_AXI_HPC1_FPD 2 S_AXI_HP0_FPD 3 S_AXI_HP1_FPD 4 S_AXI_HP2_FPD 5 S_AXI_HP3_FPD} {
                if {[apply $value $config PSU__USE__S_AXI_GP$n]} {
                    set clock [string map {s_axi_ saxi} [string tolower ${name}]]_aclk
                    dict set buses $name [list slave [apply $value $config PSU__SAXIGP${n}__DATA_WIDTH 128] AXI4 $clock]
                    dict set pins $clock clock
                }
            }
            if {[apply $value $config PSU__FPGA_PL0_ENABLE]} { dict set pins pl_clk0 out; dict set pins pl_resetn0 out }
            if {[apply $value $config PSU__FPGA_PL1_ENABLE]} { dict set pins pl_clk1 out }
            if {[apply $value $config PSU__USE__IRQ0]} { dict set pins pl_ps_irq0 in }
        }
        processing_system7 {
            if {[apply $value $config PCW_USE_M_AXI_GP0]} {
                dict set buses M_AXI_GP0 {master 32 AXI3 M_AXI_GP0_ACLK}
                dict set pins M_AXI_GP0_ACLK clock
            }
            for {set i 0} {$i < 4} {incr i} {
                if {[apply $value $config PCW_USE_S_AXI_HP$i]} {
                    dict set buses S_AXI_HP$i [list slave [apply $value $config PCW_S_AXI_HP${i}_DATA_WIDTH 64] AXI3 S_AXI_HP${i}_ACLK]
                    dict set pins S_AXI_HP${i}_ACLK clock
                }
            }
            if {[apply $value $config PCW_EN_CLK0_PORT]} { dict set pins FCLK_CLK0 out }
            if {[apply $value $config PCW_EN_CLK1_PORT] && [apply $value $config PCW_FPGA_FCLK1_ENABLE]} {
                dict set pins FCLK_CLK1 out
            }
            if {[apply $value $config PCW_EN_RST0_PORT]} { dict set pins FCLK_RESET0_N out }
            if {[apply $value $config PCW_USE_FABRIC_INTERRUPT]} { dict set pins IRQ_F2P in }
        }
        smartconnect {
            set pins [dict get $cores($kind) pins]
            for {set i 0} {$i < [apply $value $config NUM_SI 1]} {incr i} { dict set buses S0${i}_AXI {slave any any aclk} }
            for {set i 0} {$i < [apply $value $config NUM_MI 1]} {incr i} { dict set buses M0${i}_AXI {master any any aclk} }
        }
        default {
            if {[dict exists $catalogue [get $cell vlnv]]} {
                set entry [dict get $catalogue [get $cell vlnv]]
                dict for {name -} [dict get $entry buses] {
                    if {[string match m_axi* $name]} { dict set buses $name {master 128 AXI4 ap_clk} }
                    if {$name eq "s_axi"} { dict set buses s_axi {slave 32 AXI4LITE ap_clk} }
                }
                set pins {ap_clk clock ap_rst_n reset irq out}
                if {[dict exists $entry buses compute_clk]} { dict set pins compute_clk clock }
            } else {
                set buses [dict get $cores($kind) buses]
                set pins [dict get $cores($kind) pins]
            }
        }
    }
    return [list $buses $pins]
}
proc model::find {what path} {
    lassign [split [string trimleft $path /] /] cell pin
    lassign [faces [must "cell|$cell"]] buses pins
    if {$what eq "bus" && [dict exists $buses $pin]} { return [concat $cell/$pin [dict get $buses $pin]] }
    if {$what eq "pin" && [dict exists $pins $pin]} { return [list $cell/$pin [dict get $pins $pin]] }
    fail "cell $cell has no $what $pin"
}
proc get_bd_pins {path} { return [lindex [model::find pin $path] 0] }
proc get_bd_intf_pins {path} { return [lindex [model::find bus $path] 0] }
proc connect_bd_net {args} {
    model::record connect_bd_net {*}$args
    set sources {}
    foreach pin $args {
        if {[lindex [model::find pin $pin] 1] eq "out"} { lappend sources $pin }
    }
    if {[llength $sources] != 1} { model::fail "a net of $args has [llength $sources] drivers" }
    foreach pin $args {
        if {$pin in $sources} { continue }
        if {[dict exists $model::nets $pin]} { model::fail "$pin is connected already" }
        dict set model::nets $pin [lindex $sources 0]
    }
}
proc connect_bd_intf_net {one other} {
    model::record connect_bd_intf_net $one $other
    lassign [model::find bus $one] - mode bits protocol
    lassign [model::find bus $other] - mode2 bits2 protocol2
    if {"$mode $mode2" ni {"master slave" "slave master"}} { model::fail "$one and $other are both ${mode}s" }
    if {$bits ne "any" && $bits2 ne "any" && ($bits ne $bits2 || $protocol ne $protocol2)} {
        model::fail "$one ($bits bits, $protocol) does not fit $other ($bits2 bits, $protocol2)"
    }
    foreach {a b} [list $one $other $other $one] {
        if {[dict exists $model::nets "bus $a"]} { model::fail "$a is connected already" }
        dict set model::nets "bus $a" $b
    }
}

# -- addresses ----------------------------------------------------------------------------------------------------------
proc get_bd_addr_spaces {path} {
    lassign [split [string trimleft $path /] /] cell space
    set kind [model::get [model::must "cell|$cell"] kind]
    if {$space ne "Data"} { model::find bus $path }
    return "$cell/$space"
}
# The slave segments that a bus interface of a cell leads to: {segment base size}
proc model::reach {bus {seen {}}} {
    variable nets
    if {![dict exists $nets "bus $bus"]} { return {} }
    set other [dict get $nets "bus $bus"]
    lassign [split $other /] cell pin
    set handle "cell|$cell"
    if {[get $handle kind] eq "smartconnect"} {
        set found {}
        dict for {name -} [lindex [faces $handle] 0] {
            if {[string match M* $name]} { set found [concat $found [reach $cell/$name]] }
        }
        return $found
    }
    switch -glob [get $handle kind] {
        zynq_ultra_ps_e {
            set port [string index $pin 8]
            set group SAXIGP[expr {$port + 2}]
            set found {}
            foreach {name base size} {DDR_LOW 0 0x80000000 DDR_HIGH 0x800000000 0x800000000 LPS_OCM 0xFF000000 0x1000000
                QSPI 0xC0000000 0x20000000} {
                lappend found [list $cell/$group/HP${port}_$name $base $size]
            }
            return $found
        }
        processing_system7 { return [list [list $cell/$pin/HP[string index $pin end]_DDR_LOWOCM 0 0x20000000]] }
        axi_intc { return [list [list $cell/S_AXI/Reg {} 0x10000]] }
        default { return [list [list $cell/$pin/reg0 {} [dict get $model::catalogue [get $handle vlnv] range]]] }
    }
}
proc model::segments_of {space} {
    lassign [split $space /] cell name
    if {$name ne "Data"} { return [reach $space] }
    set found {}
    dict for {bus entry} [lindex [faces "cell|$cell"] 0] {
        if {[lindex $entry 0] eq "master"} { set found [concat $found [reach $cell/$bus]] }
    }
    return $found
}
proc get_bd_addr_segs {args} {
    set space [model::option $args -of_objects]
    if {$space ne ""} {
        set found {}
        foreach entry [model::segments_of $space] { lappend found [lindex $entry 0] }
        return $found
    }
    set path [string trimleft [lindex $args 0] /]
    lassign [split $path /] cell
    model::must "cell|$cell"
    return $path
}
proc assign_bd_address {args} {
    model::record assign_bd_address {*}$args
    set space [model::option $args -target_address_space]
    set segment [lindex [model::rest $args {-offset -range -target_address_space} {-force}] 0]
    set found ""
    foreach entry [model::segments_of $space] { if {[lindex $entry 0] eq $segment} { set found $entry } }
    if {$found eq ""} { model::fail "$space does not reach $segment" }
    set base [model::option $args -offset [lindex $found 1]]
    set size [model::option $args -range [lindex $found 2]]
    if {$base eq ""} { model::fail "$segment needs an offset" }
    if {$size < 4096 || ($size & ($size - 1))} { model::fail "a range of $size bytes for $segment" }
    if {$base % $size} { model::fail "$segment at $base is not aligned to its $size bytes" }
    dict for {key value} $model::given {
        lassign $key other taken
        lassign $value start length
        if {$other eq $space && $base < $start + $length && $start < $base + $size} {
            model::fail "$segment at $base overlaps $taken in $space"
        }
    }
    dict set model::given [list $space $segment] [list $base $size]
}
proc exclude_bd_addr_seg {args} {
    lassign [model::rest $args {-target_address_space}] segment
    lappend model::excluded [list [model::option $args -target_address_space] $segment]
}
proc validate_bd_design {} {
    foreach handle [model::all cell] {
        set cell [model::label $handle]
        lassign [model::faces $handle] buses pins
        dict for {pin direction} $pins {
            if {$direction in {clock reset} && ![dict exists $model::nets $cell/$pin]} {
                model::fail "$direction $cell/$pin is not connected"
            }
        }
        foreach space [concat [list $cell/Data] [lmap bus [dict keys $buses] {set bus $cell/$bus}]] {
            if {[string match */Data $space] && ![string match *ps* [model::get $handle kind]]
                && ![string match processing* [model::get $handle kind]]} { continue }
            if {![string match */Data $space] && ![string match */m_axi* $space]} { continue }
            foreach entry [model::segments_of $space] {
                set segment [lindex $entry 0]
                if {![dict exists $model::given [list $space $segment]] && [list $space $segment] ni $model::excluded} {
                    model::fail "$segment has no address in $space"
                }
            }
        }
    }
    close [open [file join [model::get $model::project directory] validated.model] w]
}
proc save_bd_design {} { model::must [lindex [model::all design] 0] }
proc startgroup {} {}
proc endgroup {} {}

# -- runs and reports ---------------------------------------------------------------------------------------------------
proc get_runs {name} { return [model::must "run|$name"] }
proc launch_runs {name args} {
    model::rest $args {-jobs -to_step}
    if {$model::fault eq "licence"} {
        model::fail "\[Common 17-345\] A valid license was not found for feature 'Synthesis' and/or device 'xczu9eg'."
    }
    if {$name eq "impl_1" && [model::get run|synth_1 PROGRESS] ne "100%"} { model::fail "synthesis has not run" }
    model::put [get_runs $name] launched [model::option $args -to_step]
}
proc wait_on_run {args} {
    set handle [get_runs [lindex [model::rest $args {-timeout}] 0]]
    if {![model::has $handle launched]} { model::fail "[model::label $handle] was not launched" }
    if {$model::fault eq "synth" && $handle eq "run|synth_1"} {
        model::put $handle STATUS "synth_design ERROR"
        return
    }
    model::put $handle PROGRESS 100%
    if {$handle eq "run|impl_1" && $model::fault ne "nobit"} {
        set folder [model::get $model::project directory]
        file mkdir [file join $folder overlay.runs impl_1] [file join $folder overlay.gen sources_1 bd esbflow hw_handoff]
        set out [open [file join $folder overlay.runs impl_1 esbflow_wrapper.bit] w]
        puts $out "no bitstream: the model of Vivado's commands wrote this"
        close $out
        set in [open expected.hwh]; set text [read $in]; close $in
        if {$model::fault eq "hwh"} { set text [string map {{NAME="HASH" VALUE="} {NAME="HASH" VALUE="0}} $text] }
        set out [open [file join $folder overlay.gen sources_1 bd esbflow hw_handoff esbflow.hwh] w]
        puts -nonewline $out $text
        close $out
    }
}
proc open_run {name} { if {[model::get [get_runs $name] PROGRESS] ne "100%"} { model::fail "$name is not finished" } }
proc model::report {arguments name} {
    set path [option $arguments -file]
    set in [open [file join [folder] reports $name]]
    set text [read $in]; close $in
    if {$model::fault eq "timing"} { set text [string map {"      0.104 " "     -0.104 "} $text] }
    if {$model::fault eq "dsp"} { set text [string map {"| DSPs           |    0 " "| DSPs           |    2 "} $text] }
    set out [open $path w]; puts -nonewline $out $text; close $out
}
proc report_timing_summary {args} { model::rest $args {-file -max_paths}; model::report $args timing.rpt }
proc report_utilization {args} { model::rest $args {-file} {-hierarchical}; model::report $args utilization.rpt }
proc report_methodology {args} { model::rest $args {-file}; close [open [model::option $args -file] w] }
proc report_cdc {args} { model::rest $args {-file}; close [open [model::option $args -file] w] }
proc report_power {args} { model::rest $args {-file}; model::report $args power.rpt }
proc read_saif {args} { model::rest $args {-strip_path} }

set ::model_file [file normalize [info script]]
proc model::folder {} { return [file dirname $::model_file] }
if {[info exists ::argv] && [llength $::argv] > 0} {
    set step [lindex $::argv 0]
    if {[catch {source $step} text]} {
        puts "$text"
        exit 1
    }
}
