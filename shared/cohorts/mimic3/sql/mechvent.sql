-- 15. Signs of ventilation and of its end, one row for each stay and time.
SELECT
    icustay_id,
    charttime,
    max(CAST(CASE itemid
        WHEN 720 THEN value <> 'Other/Remarks' WHEN 467 THEN value = 'Ventilator' WHEN 640 THEN false ELSE true
    END AS INTEGER)) AS mechvent,
    max(CAST(itemid = 640 AND value IN ('Extubated', 'Self Extubation') AS INTEGER)) AS extubated,
    max(CAST(itemid = 640 AND value = 'Self Extubation' AS INTEGER)) AS selfextubated
FROM charted
WHERE itemid IN (SELECT itemid FROM items WHERE extract = 'mechvent') AND value IS NOT NULL AND icustay_id IS NOT NULL
GROUP BY icustay_id, charttime
ORDER BY icustay_id, charttime
