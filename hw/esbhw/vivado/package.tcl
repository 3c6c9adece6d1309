# Step 1: engine.v becomes an IP core with its interfaces and every register.
source [file join [file dirname [file normalize [info script]]] settings.tcl]

puts "esbflow: Vivado [version -short]; written for $esb(versions)"
if {[llength [get_parts $esb(part)]] == 0} {
    error "esbflow: this Vivado has no part $esb(part). Install its device files. $esb(licence)"
}
create_project -force -part $esb(part) package [file join $esb(work) package]
add_files -norecurse [file join $esb(here) engine.v]
# Of an engine with two clocks: what crosses between them. It needs the clocks of the design around the engine.
foreach name $esb(constraints) {
    add_files -fileset constrs_1 -norecurse [file join $esb(here) $name]
    set_property PROCESSING_ORDER LATE [get_files $name]
}
set_property top $esb(module) [current_fileset]
update_compile_order -fileset sources_1

ipx::package_project -root_dir $esb(ip) -vendor $esb(vendor) -library $esb(library) -taxonomy /UserIP \
    -import_files -set_current true -force
set core [ipx::current_core]
set_property name $esb(module) $core
set_property version $esb(version) $core
set_property display_name "esbflow engine $esb(name)" $core
set_property description "esbflow engine $esb(name), configuration $esb(hash)" $core
set_property core_revision $esb(revision) $core
# The clock's frequency comes from the block design.
set_property ipi_drc {ignore_freq_hz true} $core

# Interfaces are inferred from the attributes in engine.v; what was not found is an error here and not at validation.
foreach bus [concat $esb(slave) $esb(masters) $esb(clocks) {ap_rst_n irq}] {
    if {[llength [ipx::get_bus_interfaces $bus -of_objects $core]] == 0} {
        error "esbflow: the packager found no interface $bus in engine.v"
    }
}
foreach bus [concat $esb(slave) $esb(masters)] {
    ipx::associate_bus_interfaces -busif $bus -clock ap_clk $core
}
ipx::associate_bus_interfaces -clock ap_clk -reset ap_rst_n $core

proc parameter {interface name value} {
    if {[llength [ipx::get_bus_parameters $name -of_objects $interface]] == 0} {
        ipx::add_bus_parameter $name $interface
    }
    set_property value $value [ipx::get_bus_parameters $name -of_objects $interface]
}
parameter [ipx::get_bus_interfaces irq -of_objects $core] SENSITIVITY LEVEL_HIGH
parameter [ipx::get_bus_interfaces ap_rst_n -of_objects $core] POLARITY ACTIVE_LOW

# One address block: with two, PYNQ renames the core and its registers are gone.
foreach map [ipx::get_memory_maps -of_objects $core] {
    ipx::remove_memory_map [get_property name $map] $core
}
set map [ipx::add_memory_map $esb(slave) $core]
set_property slave_memory_map_ref $esb(slave) [ipx::get_bus_interfaces $esb(slave) -of_objects $core]
set block [ipx::add_address_block reg0 $map]
set_property base_address 0 $block
set_property range $esb(register_range) $block
set_property width 32 $block
set_property usage register $block
foreach entry $esb(registers) {
    lassign $entry name offset access description fields
    set register [ipx::add_register $name $block]
    set_property address_offset $offset $register
    set_property size 32 $register
    set_property access $access $register
    set_property description $description $register
    foreach part $fields {
        lassign $part field low width
        set made [ipx::add_field $field $register]
        set_property bit_offset $low $made
        set_property bit_width $width $made
        set_property access $access $made
        set_property description "$field of $name" $made
    }
}
# A segment of the packager's own would keep the memory windows from being assigned.
foreach space [ipx::get_address_spaces -of_objects $core] {
    foreach segment [ipx::get_segments -of_objects $space] {
        ipx::remove_segment [get_property name $segment] $space
    }
}
# What the .hwh says of the engine, for the driver to compare.
foreach {name value} $esb(parameters) {
    set parameter [ipx::add_user_parameter $name $core]
    set_property value_resolve_type immediate $parameter
    set_property value_format string $parameter
    set_property value $value $parameter
}

ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
puts "esbflow: packaged $esb(vendor):$esb(library):$esb(module):$esb(version)"
