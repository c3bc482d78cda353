-- 13. Vasopressors (MetaVision) as norepinephrine equivalent in mcg/kg/min; a weight of 80 kg is assumed.
SELECT
    v.icustay_id,
    v.itemid,
    seconds(v.starttime) AS starttime,
    seconds(v.endtime) AS endtime,
    decimal3(CASE
        WHEN i.grp IN ('norepinephrine', 'epinephrine') AND v.rateuom = 'mcg/kg/min' THEN v.rate
        WHEN i.grp IN ('norepinephrine', 'epinephrine') AND v.rateuom = 'mcg/min' THEN v.rate / 80
        WHEN i.grp = 'vasopressin' AND v.rate > 0.2 THEN v.rate * 5 / 60
        WHEN i.grp = 'vasopressin' AND v.rateuom = 'units/min' THEN v.rate * 5
        WHEN i.grp = 'vasopressin' AND v.rateuom = 'units/hour' THEN v.rate * 5 / 60
        WHEN i.grp = 'phenylephrine' AND v.rateuom = 'mcg/kg/min' THEN v.rate * 0.45
        WHEN i.grp = 'phenylephrine' AND v.rateuom = 'mcg/min' THEN v.rate * 0.45 / 80
        WHEN i.grp = 'dopamine' AND v.rateuom = 'mcg/kg/min' THEN v.rate * 0.01
        WHEN i.grp = 'dopamine' AND v.rateuom = 'mcg/min' THEN v.rate * 0.01 / 80
    END) AS rate_std
FROM inputevents_mv AS v
JOIN items AS i ON i.itemid = v.itemid AND i.extract = 'vaso_mv'
WHERE v.rate IS NOT NULL AND v.statusdescription IS NOT NULL AND v.statusdescription <> 'Rewritten'
ORDER BY v.icustay_id NULLS LAST, v.itemid, starttime, endtime, rate_std NULLS LAST
