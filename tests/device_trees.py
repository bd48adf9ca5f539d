"""Files as the kernels of several machines show them, written by us after NVIDIA's and the kernel's documents."""

from __future__ import annotations

from pathlib import Path

Files = dict[str, str]

JETSON_RELEASE = "etc/nv_tegra_release"

# L4T 32 (JetPack 4) on a TX2: NVIDIA's own driver, under iio; milliwatts.
TX2 = {
    JETSON_RELEASE: "# R32 (release), REVISION: 7.5, GCID: 1, BOARD: t186ref, EABI: aarch64\n",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/rail_name_0": "VDD_IN\n",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/in_power0_input": "5297\n",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/rail_name_1": "VDD_SYS_CPU\n",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/in_power1_input": "1917\n",
    "sys/bus/i2c/drivers/ina3221x/0-0040/iio:device0/rail_name_0": "VDD_SYS_GPU\n",
    "sys/bus/i2c/drivers/ina3221x/0-0040/iio:device0/in_power0_input": "182\n",
    "sys/class/devfreq/17000000.gp10b/cur_freq": "1300500000\n",
    "sys/devices/gpu.0/load": "760\n",
    "sys/class/thermal/thermal_zone0/type": "MCPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "42500\n",
    "sys/class/thermal/thermal_zone1/type": "PMIC-Die\n",
    "sys/class/thermal/thermal_zone1/temp": "100000\n",
}

# L4T 35 (JetPack 5) on an AGX Orin: hwmon, no rail that feeds all others, channels that are not connected.
AGX_ORIN = {
    JETSON_RELEASE: "# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref, EABI: aarch64\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in1_input": "20000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "400\n",
    "sys/class/hwmon/hwmon3/shunt1_resistor": "2000\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon3/in2_input": "20000\n",
    "sys/class/hwmon/hwmon3/curr2_input": "100\n",
    "sys/class/hwmon/hwmon3/shunt2_resistor": "2000\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon3/in3_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr3_input": "1000\n",
    "sys/class/hwmon/hwmon3/shunt3_resistor": "2000\n",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon4/name": "ina3221\n",
    "sys/class/hwmon/hwmon4/in1_label": "NC\n",
    "sys/class/hwmon/hwmon4/in1_input": "0\n",
    "sys/class/hwmon/hwmon4/curr1_input": "0\n",
    "sys/class/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO\n",
    "sys/class/hwmon/hwmon4/in2_input": "5000\n",
    "sys/class/hwmon/hwmon4/curr2_input": "200\n",
    "sys/class/devfreq/17000000.ga10b/cur_freq": "1300500000\n",
    "sys/devices/platform/gpu.0/load": "990\n",
    "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "54000\n",
    "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
    "sys/class/thermal/thermal_zone1/temp": "52500\n",
    "var/lib/nvpmodel/status": "pmode:0003 fmode:quiet",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=3 NAME=MODE_50W >\n",
}

# L4T 36 (JetPack 6) on an Orin Nano: VDD_IN feeds all; over-current counters; a zone that is off.
ORIN_NANO = {
    JETSON_RELEASE: "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\n",
    "proc/meminfo": "MemTotal:        7802160 kB\nMemFree:          900000 kB\nMemAvailable:    3802160 kB\n",
    "proc/self/statm": "100000 25000 1 1 0 1 0\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "2400\n",
    "sys/class/hwmon/hwmon1/shunt1_resistor": "5000\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr2_input": "1000\n",
    "sys/class/hwmon/hwmon2/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon2/oc2_event_cnt": "15\n",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "37\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000\n",
    "sys/class/devfreq/17000000.gpu/device/load": "840\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq": "1510400\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "54000\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "55500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "",  # such a read fails while the part is off
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
}

# L4T 38 (JetPack 7) on a Thor: the carrier's INA238 measures the whole input; the GPU's devfreq has another name.
THOR = {
    JETSON_RELEASE: "# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64\n",
    "sys/class/hwmon/hwmon1/name": "ina238\n",
    "sys/class/hwmon/hwmon1/power1_input": "28906000\n",
    "sys/class/hwmon/hwmon2/name": "ina3221\n",
    "sys/class/hwmon/hwmon2/in1_label": "VDD_GPU\n",
    "sys/class/hwmon/hwmon2/in1_input": "12000\n",
    "sys/class/hwmon/hwmon2/curr1_input": "-32\n",
    "sys/class/hwmon/hwmon2/in2_label": "VDD_CPU_SOC_MSS\n",
    "sys/class/hwmon/hwmon2/in2_input": "12000\n",
    "sys/class/hwmon/hwmon2/curr2_input": "500\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1574000000\n",
    "sys/class/devfreq/gpu-nvd-0/cur_freq": "900000000\n",
    "sys/class/thermal/thermal_zone0/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51218\n",
}

# An x86 server with two packages and memory counters; a package's own zones are within it, psys holds all.
XEON = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "700000\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:1/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "200000\n",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
    "sys/class/powercap/intel-rapl:1/name": "package-1\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "900000\n",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:2/name": "psys\n",
    "sys/class/powercap/intel-rapl:2/energy_uj": "5000000\n",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "1000000\n",
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon0/temp1_input": "61000\n",
    "sys/class/hwmon/hwmon0/temp2_label": "Core 0\n",
    "sys/class/hwmon/hwmon0/temp2_input": "58000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu0/topology/physical_package_id": "0\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "7\n",
    "sys/devices/system/cpu/cpu1/topology/physical_package_id": "0\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2600000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
}

# An AMD desktop.
RYZEN = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "65532610987\n",
    "sys/class/hwmon/hwmon2/name": "k10temp\n",
    "sys/class/hwmon/hwmon2/temp1_label": "Tctl\n",
    "sys/class/hwmon/hwmon2/temp1_input": "48250\n",
}


def write_tree(root: Path, tree: Files) -> Path:
    """Write the files below a folder."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
