import sys,time
from pathlib import Path
from bench.replay_trace import *
from bench.replay_timing import MACHINES
from bench.replay_cluster import *
from router.placement import POLICIES, Slo
from dataclasses import replace as rp
tr=load_trace(Path(sys.argv[1])); mult=[float(x) for x in sys.argv[2].split(",")]; names=(sys.argv[3].split(",") if len(sys.argv)>3 and sys.argv[3] else list(POLICIES))
P=int(sys.argv[4]) if len(sys.argv)>4 else 12
slo=Slo(30.0,0.1)
if "slo" in " ".join(sys.argv): slo=Slo(float(sys.argv[-1].split("=")[1]),0.1)
m=MACHINES["70b-a800"]
c=Cluster(m,P,16-P,m.kv_tokens//512,slo)
print("cap blocks",c.cache_blocks,"inf",round(pooled_hit_ratio(tr,None),4),"lru P",round(pooled_hit_ratio(tr,c.cache_blocks*P),4),"lru all",round(pooled_hit_ratio(tr,c.cache_blocks*16),4),"bel P",round(pooled_hit_ratio(tr,c.cache_blocks*P,"clairvoyant"),4))
print("work/req no hit", sum(m.prompt_s(r.prompt,0) for r in tr)/len(tr), "span",tr[-1].at, len(tr)/tr[-1].at)
for L in mult:
    t=[rp(r,at=r.at/L) for r in tr]
    for n in names:
      for rej in (False,True):
        t0=time.time()
        o=Simulation(c,POLICIES[n],refuse_late=rej).run(t)
        good=[j for j in o.jobs if j.first_at-j.arrived<=slo.ttft_s and (j.finished_at-j.first_at)/max(1,j.recorded.output-1)<=slo.itl_s]
        tt=sorted(j.first_at-j.arrived for j in o.jobs); it=sorted((j.finished_at-j.first_at)/max(1,j.recorded.output-1) for j in o.jobs)
        hit=sum(j.cached for j in o.jobs)/sum(j.prompt for j in o.jobs)
        print(f"{L:4} {n:13} rej={rej!s:5} good {len(good)/len(t):.3f} {len(good)/t[-1].at:.2f}/s ttft {tt[len(tt)//2]:.2f} {tt[int(len(tt)*.99)]:.1f} itl {it[len(it)//2]*1e3:.0f} {it[int(len(it)*.99)]*1e3:.0f} hit {hit:.3f} mm {max(o.busy_s)/(sum(o.busy_s)/len(o.busy_s)):.2f} util {sum(o.busy_s)/len(o.busy_s)/t[-1].at:.2f} {o.reasons} {time.time()-t0:.1f}s", flush=True)
