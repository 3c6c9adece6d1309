# Step 2: the block design: processor, engine, memory ports, interrupt controller, addresses.
source [file join [file dirname [file normalize [info script]]] settings.tcl]

create_project -force -part $esb(part) overlay [file join $esb(work) overlay]
set found {}
foreach pattern $esb(board_parts) {
    set found [concat $found [get_board_parts -quiet $pattern]]
}
set preset [expr {[llength $found] > 0}]
if {$preset} {
    set_property board_part [lindex [lsort -dictionary $found] end] [current_project]
    puts "esbflow: board files [lindex [lsort -dictionary $found] end]"
} else {
    puts "esbflow: no board files for $esb(board): the part alone, without the board's memory preset"
}
set_property ip_repo_paths [list $esb(ip)] [current_project]
update_ip_catalog -rebuild

# The newest version that the catalogue has; no version is written down anywhere.
proc core {vendor library name} {
    set found [get_ipdefs -filter "VLNV =~ $vendor:$library:$name:*"]
    if {[llength $found] == 0} {
        error "esbflow: Vivado's catalogue has no $vendor:$library:$name"
    }
    set newest [lindex [lsort -dictionary $found] end]
    puts "esbflow: $newest"
    return $newest
}
proc cell {name definition {settings {}}} {
    set made [create_bd_cell -type ip -vlnv $definition $name]
    if {[llength $settings] > 0} {
        set_property -dict $settings $made
    }
    return $made
}
proc wire {source args} {
    foreach sink $args {
        connect_bd_net [get_bd_pins $source] [get_bd_pins $sink]
    }
}
proc bus {master slave} {
    connect_bd_intf_net [get_bd_intf_pins $master] [get_bd_intf_pins $slave]
}

create_bd_design $esb(design)
set ps ps
cell $ps [core xilinx.com ip $esb(processor)]
set automation [list apply_board_preset $preset]
if {$esb(processor) eq "processing_system7"} {
    set automation [concat [list make_external {FIXED_IO, DDR} Master Disable Slave Disable] $automation]
}
apply_bd_automation -rule xilinx.com:bd_rule:$esb(processor) -config $automation [get_bd_cells $ps]
# After the preset, which switches on ports that stay unconnected here.
set_property -dict $esb(processor_settings) [get_bd_cells $ps]

cell $esb(cell) [core $esb(vendor) $esb(library) $esb(module)]
cell reset [core xilinx.com ip proc_sys_reset]
cell registers [core xilinx.com ip smartconnect] {CONFIG.NUM_SI 1 CONFIG.NUM_MI 2}
cell axi_intc_0 [core xilinx.com ip axi_intc] {CONFIG.C_IRQ_CONNECTION 1}
set index 0
foreach master $esb(masters) {
    cell memory_$index [core xilinx.com ip smartconnect] {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1}
    incr index
}

# One clock and one reset for everything; an engine may have a clock of its own for its arrays, and crosses to it by itself.
set clock $ps/$esb(clock_pin)
wire $clock $esb(cell)/ap_clk reset/slowest_sync_clk registers/aclk axi_intc_0/s_axi_aclk
foreach pin $esb(clocked_pins) {
    wire $clock $ps/$pin
}
if {$esb(compute_clock_pin) ne ""} {
    wire $ps/$esb(compute_clock_pin) $esb(cell)/compute_clk
}
wire $ps/$esb(reset_pin) reset/ext_reset_in
wire reset/interconnect_aresetn registers/aresetn
wire reset/peripheral_aresetn $esb(cell)/ap_rst_n axi_intc_0/s_axi_aresetn

bus $ps/$esb(register_port) registers/S00_AXI
bus registers/M00_AXI $esb(cell)/$esb(slave)
bus registers/M01_AXI axi_intc_0/s_axi
set index 0
foreach master $esb(masters) port $esb(memory_ports) {
    wire $clock memory_$index/aclk
    wire reset/interconnect_aresetn memory_$index/aresetn
    bus $esb(cell)/$master memory_$index/S00_AXI
    bus memory_$index/M00_AXI $ps/$port
    incr index
}
wire $esb(cell)/irq axi_intc_0/intr
wire axi_intc_0/irq $ps/$esb(interrupt)

# The driver reads these addresses from the .hwh; they are fixed so that two builds agree.
set data [get_bd_addr_spaces $ps/Data]
assign_bd_address -offset $esb(engine_address) -range $esb(register_range) -target_address_space $data \
    [get_bd_addr_segs $esb(cell)/$esb(slave)/reg0] -force
assign_bd_address -offset $esb(controller_address) -range 0x10000 -target_address_space $data \
    [get_bd_addr_segs axi_intc_0/S_AXI/Reg] -force
# DRAM only. A stray pointer must fault, and not write on-chip memory or flash.
foreach master $esb(masters) {
    set space [get_bd_addr_spaces $esb(cell)/$master]
    set given 0
    foreach segment [get_bd_addr_segs -addressables -of_objects $space] {
        if {[regexp {DDR} $segment]} {
            assign_bd_address -target_address_space $space $segment
            set given 1
        } else {
            exclude_bd_addr_seg -target_address_space $space $segment
        }
    }
    if {!$given} {
        error "esbflow: $master reaches no DRAM"
    }
}

validate_bd_design
save_bd_design
set file [get_files $esb(design).bd]
generate_target all $file
add_files -norecurse [make_wrapper -files $file -top]
set_property top $esb(design)_wrapper [current_fileset]
update_compile_order -fileset sources_1
close_project
puts "esbflow: block design $esb(design) validated"
